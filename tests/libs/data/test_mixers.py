from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.data.mixers import Draw, WeightedMixer, shuffled_rows
from rebus.registry import NoSettings


def mixer(weights: dict[str, float], batch_size: int) -> WeightedMixer:
    return WeightedMixer(NoSettings(), weights=weights, batch_size=batch_size)


@given(
    weights=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4),
    batch_size=st.integers(16, 40),
    steps=st.integers(1, 60),
)
def test_streams_are_unbroken_and_shares_exact(weights: list[float], batch_size: int, steps: int) -> None:
    named = {str(index): weight for index, weight in enumerate(weights)}
    mix = mixer(named, batch_size)
    position = dict.fromkeys(named, 0)
    for step in range(steps):
        draws = mix.draws(step)
        assert sum(draw.count for draw in draws) == batch_size
        for draw in draws:
            assert draw.count >= 0
            assert draw.start == position[draw.source]
            position[draw.source] += draw.count
    for name, weight in named.items():
        share = steps * batch_size * weight / sum(weights)
        assert abs(position[name] - share) <= max(0.5, (len(weights) - 1) / 2) + 1e-6


def test_hand_worked_draws() -> None:
    mix = mixer({"a": 3, "b": 1}, 2)
    assert [mix.draws(step) for step in range(3)] == [
        [Draw("a", 0, 1), Draw("b", 0, 1)],
        [Draw("a", 1, 2), Draw("b", 1, 0)],
        [Draw("a", 3, 1), Draw("b", 1, 1)],
    ]


def test_a_source_of_weight_zero_is_never_drawn() -> None:
    assert [draw.source for draw in mixer({"a": 1, "b": 0}, 4).draws(5)] == ["a"]


def test_bad_mixtures_are_named() -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        mixer({"a": -1}, 4)
    with pytest.raises(ValueError, match="batch_size=2 is too small"):
        mixer({"a": 1, "b": 1, "c": 1, "d": 1}, 2)


@given(size=st.integers(1, 30), start=st.integers(0, 90), count=st.integers(0, 90), seed=st.integers(0, 5))
def test_rows_do_not_depend_on_how_the_stream_is_cut(size: int, start: int, count: int, seed: int) -> None:
    whole = shuffled_rows(range(start + count), size=size, key=(seed,))
    assert (shuffled_rows(range(start, start + count), size=size, key=(seed,)) == whole[start:]).all()
    for epoch in range((start + count) // size):
        assert sorted(whole[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_keys_are_permuted_differently() -> None:
    rows = shuffled_rows(range(200), size=100, key=(0,))
    assert (rows[:100] != rows[100:]).any()
    assert (rows != shuffled_rows(range(200), size=100, key=(1,))).any()
    assert rows.dtype == np.int64
