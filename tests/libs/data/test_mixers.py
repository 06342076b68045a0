"""Which source a sample comes from: exact shares, schedules, and the bandit against a reference."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus import registry
from rebus.data.mixers import Mixer, Mixture, MixtureChange, Portion
from rebus.data.mixers.odm import OdmConfig, OdmMixer, OdmState, exp3_probabilities, exploration, rewards
from rebus.data.mixers.scheduled import ShareState
from rebus.data.stream import Drawn, shuffled_rows

SIZES = {"a": 400, "b": 100, "c": 25}


def mixer(name: str, weights: dict[str, float], changes: list[MixtureChange] | None = None, **settings: Any) -> Mixer:
    spec = {"name": name, **settings}
    return registry.build("mixer", spec, mixture=Mixture(weights, changes or []), sizes=SIZES, key=(0,))


def sources(mix: Mixer, stop: int, block: int = 8) -> list[str]:
    """The source of each of the first ``stop`` samples, drawn block by block."""
    found: list[str] = []
    state = mix.state_type()
    while len(found) < stop:
        portions, state = mix.draw(len(found), min(block, stop - len(found)), state)
        found += [portion.source for portion in portions for _ in range(portion.count)]
    return found


@given(
    weights=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4),
    block=st.integers(16, 40),
    blocks=st.integers(1, 60),
)
def test_shares_are_exact(weights: list[float], block: int, blocks: int) -> None:
    named = {str(index): weight for index, weight in enumerate(weights)}
    counts = Counter(sources(mixer("weighted", named), blocks * block, block))
    for name, weight in named.items():
        share = blocks * block * weight / sum(weights)
        assert abs(counts[name] - share) <= max(0.5, (len(weights) - 1) / 2) + 1e-6


def test_hand_worked_draws() -> None:
    mix = mixer("weighted", {"a": 3, "b": 1})
    first, state = mix.draw(0, 2, ShareState())
    assert first == [Portion("a", 1, 0.75), Portion("b", 1, 0.25)]
    second, state = mix.draw(2, 2, state)
    assert [portion.count for portion in second] == [2, 0]
    assert [portion.count for portion in mix.draw(4, 2, state)[0]] == [1, 1]


@given(weights=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=12), block=st.integers(1, 5))
@settings(max_examples=40)
def test_blocks_too_small_for_the_shares_catch_up(weights: list[float], block: int) -> None:
    named = {str(index): weight for index, weight in enumerate(weights)}
    counts = Counter(sources(mixer("weighted", named), 600, block))
    assert counts.total() == 600
    for name, weight in named.items():
        assert abs(counts[name] - 600 * weight / sum(weights)) <= len(weights)


@pytest.mark.parametrize("block", [1, 8, 50])
def test_weights_change_at_the_very_sample_and_a_source_joins(block: int) -> None:
    changes = [
        MixtureChange(from_sample=33, mixture={"a": 1, "b": 1, "c": 2}),
        MixtureChange(from_sample=73, mixture={"c": 1}),
    ]
    drawn = sources(mixer("weighted", {"a": 3, "b": 1}, changes), 100, block)
    assert set(drawn[:33]) == {"a", "b"}
    assert abs(drawn[:33].count("a") - 24.75) < 1
    counts = Counter(drawn[33:73])
    assert all(abs(counts[name] - share) <= 1 for name, share in {"a": 10, "b": 10, "c": 20}.items())
    assert set(drawn[73:]) == {"c"}


def test_a_source_of_weight_zero_is_never_drawn() -> None:
    assert set(sources(mixer("weighted", {"a": 1, "b": 0}), 40)) == {"a"}


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [400, 100, 25]), (2.0, [20, 10, 5]), (1e9, [1, 1, 1])],
)
def test_temperature_is_a_power_of_the_size(temperature: float, expected: list[float]) -> None:
    drawn = Counter(sources(mixer("temperature", dict.fromkeys(SIZES, 1.0), temperature=temperature), 2100, 30))
    for name, weight in zip(SIZES, expected, strict=True):
        assert abs(drawn[name] - 2100 * weight / sum(expected)) <= 1


def test_temperature_takes_the_mixture_as_a_factor() -> None:
    drawn = Counter(sources(mixer("temperature", {"a": 1, "b": 3}, temperature=2.0), 500, 10))
    assert drawn == {"a": 200, "b": 300}  # 20 : 3 * 10


def test_bad_mixtures_are_named() -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        Mixture({"a": -1})
    with pytest.raises(ValueError, match="not all 0"):
        MixtureChange(from_sample=3, mixture={"a": 0})
    with pytest.raises(ValueError, match="at least 1"):
        MixtureChange(from_sample=0, mixture={"a": 1})
    change = MixtureChange(from_sample=3, mixture={"a": 1})
    with pytest.raises(ValueError, match=r"ascending from_sample, got \[3, 3\]"):
        Mixture({"a": 1}, [change, change])
    with pytest.raises(ValueError, match=r"no source of images \(image_sources=\['b'\]\)"):
        mixer("vlm-when-images", {"a": 1}, total_samples=10, image_sources=["b"])
    with pytest.raises(ValueError, match="second names no data binding: x; known: a, b, c"):
        mixer("mmed-ift", {"a": 1}, first_samples=10, second={"x": 1})


@pytest.mark.paper("mm1")
def test_mm1_draws_45_45_10_inside_the_binomial_band() -> None:
    """3.29 standard errors hold 99.9 % of a binomial; exact shares lie well inside at any length."""
    weights = {"interleaved": 0.45, "captions": 0.45, "text": 0.10}
    drawn = sources(mixer("weighted", weights), 4000, 32)
    for length in (100, 1000, 4000):
        counts = Counter(drawn[:length])
        for name, weight in weights.items():
            assert abs(counts[name] - length * weight) <= 3.29 * math.sqrt(length * weight * (1 - weight))


@pytest.mark.paper("vlm-when-images")
@pytest.mark.parametrize("start", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_images_enter_at_their_share_of_the_budget(start: float, share: float) -> None:
    """Samples of like length: a budget of samples is one of tokens. Whatever the start, all of it is spent."""
    total = 2000
    mix = mixer(
        "vlm-when-images",
        {"a": 3, "b": 1, "c": 1},
        total_samples=total,
        image_sources=["c"],
        image_start=start,
        image_share=share,
    )
    drawn = sources(mix, total, 12)
    counts = Counter(drawn)
    assert counts["a"] + counts["b"] + counts["c"] == total
    assert abs(counts["c"] - share * (1 - start) * total) <= 1
    assert "c" not in drawn[: round(start * total)]
    assert abs(counts["a"] - 3 * counts["b"]) <= 8  # text keeps its own proportions
    if start == 1.0:  # text pre-training and nothing else: the first of two separate steps
        assert drawn == sources(mixer("weighted", {"a": 3, "b": 1}), total, 12)


@pytest.mark.paper("mmed-ift")
def test_the_second_stage_holds_its_own_task_only_and_languages_keep_their_proportions() -> None:
    first = {"en": 4, "zh": 2, "fr": 1, "ja": 1}
    second = {"mc-en": 3, "mc-zh": 1}
    mix = registry.build(
        "mixer",
        {"name": "mmed-ift", "first_samples": 801, "second": second},
        mixture=Mixture(first),
        sizes=dict.fromkeys([*first, *second], 10),
        key=(0,),
    )
    drawn = sources(mix, 1201, 16)
    assert set(drawn[801:]) == set(second)
    for weights, part in ((first, drawn[:801]), (second, drawn[801:])):
        counts = Counter(part)
        for name, weight in weights.items():
            assert abs(counts[name] - len(part) * weight / sum(weights.values())) <= 1.5


def exp3_reference(rewards: list[float], t: int) -> list[float]:
    """pi_t written out term by term (algorithm 1 of arXiv 2312.02406)."""
    k = len(rewards)

    def eps(at: int) -> float:
        return 1 / k if at == 0 else min(1 / k, math.sqrt(math.log(k) / (k * at)))

    total = sum(math.exp(eps(t - 1) * reward) for reward in rewards)
    return [(1 - k * eps(t)) * math.exp(eps(t - 1) * reward) / total + eps(t) for reward in rewards]


@pytest.mark.paper("odm")
@pytest.mark.parametrize("accumulate", ["average", "sum"])
def test_odm_equals_a_reference_for_1000_steps(accumulate: str) -> None:
    rng = random.Random(0)
    names = list("abcde")
    mix = mixer("odm", dict.fromkeys(names, 1.0), accumulate=accumulate, smoothing=0.8)
    assert isinstance(mix, OdmMixer)
    state, estimates = OdmState(rewards=dict.fromkeys(names, 0.0)), [0.0] * 5
    for t in range(1, 1001):
        odds = mix.probabilities(t, state)
        assert sum(odds.values()) == pytest.approx(1)
        assert min(odds.values()) >= exploration(5, t) - 1e-15
        assert list(odds.values()) == pytest.approx(exp3_reference(estimates, t))
        arm = rng.randrange(5)
        loss = rng.uniform(0, 6)
        reward = loss / odds[names[arm]]
        average = 0.8 * estimates[arm] + 0.2 * reward
        estimates[arm] = average if accumulate == "average" else estimates[arm] + reward / 10
        state = mix.learn({names[arm]: reward}, state)


@pytest.mark.paper("odm")
def test_importance_weighted_rewards_are_unbiased() -> None:
    """Whatever the odds: the mean over many steps is each source's loss, within three standard errors."""
    losses = {"a": 1.0, "b": 4.0, "c": 2.5}
    odds = exp3_probabilities({"a": 3.0, "b": 0.0, "c": 9.0}, 7)
    mix = mixer("odm", dict.fromkeys(losses, 1.0))
    state = OdmState(rewards={"a": 3.0, "b": 0.0, "c": 9.0}, updates=6)
    portions, _ = mix.draw(0, 6000, state)
    drawn = [
        Drawn(number=0, source=portion.source, row=0, odds=portion.odds)
        for portion in portions
        for _ in range(portion.count)
    ]
    assert all(sample.odds == odds[sample.source] for sample in drawn)
    found: list[list[float]] = []
    for step in range(0, 6000, 4):
        batch = drawn[step : step + 4]
        told = rewards({place: losses[sample.source] for place, sample in enumerate(batch)}, batch)
        found.append([told.get(name, 0.0) for name in losses])
    means, errors = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(len(found))
    assert (np.abs(means - list(losses.values())) <= 3 * errors).all()


@pytest.mark.paper("odm")
def test_odm_draws_the_best_arm_most() -> None:
    """Constant losses 1, 1, 4: the third arm must come to be drawn most often."""
    losses = {"a": 1.0, "b": 1.0, "c": 4.0}
    mix = mixer("odm", dict.fromkeys(losses, 1.0), accumulate="sum")
    state, counts = mix.state_type(), Counter[str]()
    for step in range(400):
        (portion, *_), _ = mix.draw(step, 1, state)
        counts[portion.source] += step >= 200
        state = mix.learn({portion.source: losses[portion.source] / portion.odds}, state)
    assert counts["c"] > counts["a"] + counts["b"]


def test_odm_warms_up_on_the_mixture_and_depends_on_seed_and_number_alone() -> None:
    config = OdmConfig(warmup_updates=2)
    mix = OdmMixer(config, mixture=Mixture({"a": 3, "b": 1}), sizes=SIZES, key=(0,))
    state = OdmState(rewards={"a": 0.0, "b": 9.0}, updates=1)
    assert mix.probabilities(0, state) == {"a": 0.75, "b": 0.25}
    assert mix.probabilities(0, OdmState(rewards=state.rewards, updates=2))["b"] > 0.5
    whole = sources(mix, 64, 64)
    assert whole == sources(mix, 64, 5)
    assert whole != sources(OdmMixer(config, mixture=Mixture({"a": 3, "b": 1}), sizes=SIZES, key=(1,)), 64, 5)


def test_a_single_source_and_one_that_joins_late() -> None:
    assert exp3_probabilities({"a": 5.0}, 3) == {"a": 1.0}
    mix = mixer("odm", {"a": 1, "b": 1}, [MixtureChange(from_sample=9, mixture={"a": 1, "b": 1, "c": 1})])
    assert isinstance(mix, OdmMixer)
    state = OdmState(rewards={"a": 2.0, "b": 4.0}, updates=3)
    assert set(mix.probabilities(8, state)) == {"a", "b"}
    odds = mix.probabilities(9, state)
    assert odds["a"] < odds["c"] < odds["b"]
    assert odds["c"] == pytest.approx(exp3_reference([2.0, 4.0, 3.0], 4)[2])


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
