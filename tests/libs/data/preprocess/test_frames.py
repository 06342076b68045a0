"""Frame samplers against closed forms, and against what adaptive keyframes must be at their extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus import registry
from rebus.data.preprocess.frames import adaptive_keyframes, uniform
from rebus.errors import InvalidArgumentError

score_lists = st.lists(st.integers(-50, 50), min_size=1, max_size=70).map(lambda s: np.array(s, np.float64))


def test_uniform_is_the_closed_form() -> None:
    for total in range(1, 61):
        for count in range(1, 61):
            n = min(total, count)
            found = uniform(total, count)
            assert found == [math.floor((k + 0.5) * total / n) for k in range(n)]
            assert len(set(found)) == n
            assert 0 <= found[0] <= found[-1] < total


@pytest.mark.parametrize(("fps", "rate"), [(30.0, 1.0), (29.97, 2.0), (10.0, 3.0), (10.0, 10.0), (5.0, 24.0)])
def test_a_rate_shows_what_is_on_the_screen_at_its_ticks(fps: float, rate: float) -> None:
    sampler = registry.build("frame-sampler", {"name": "fps", "fps": rate, "max_frames": 1000})

    found = sampler(100, fps)

    taken = min(rate, fps)
    ticks = [k / taken for k in range(1000) if k / taken < 100 / fps - 1e-9]
    assert found == [math.floor(tick * fps + 1e-6) for tick in ticks]


def test_a_rate_has_a_bound() -> None:
    sampler = registry.build("frame-sampler", {"name": "fps", "fps": 2.0, "max_frames": 8})

    assert sampler(30, 10.0) == [0, 5, 10, 15, 20, 25]
    assert sampler(3000, 10.0) == uniform(3000, 8)


@pytest.mark.paper("aks")
@given(score_lists, st.integers(1, 40), st.floats(-5, 20), st.integers(0, 7))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_keyframes_are_as_many_as_asked_and_distinct(
    scores: np.ndarray, count: int, threshold: float, depth: int
) -> None:
    found = adaptive_keyframes(scores, count, threshold, depth)

    assert found == sorted(set(found))
    assert len(found) == min(count, len(scores))
    assert 0 <= found[0] <= found[-1] < len(scores)


@pytest.mark.paper("aks")
@given(score_lists, st.integers(1, 40), st.integers(0, 7))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_keyframes_without_a_threshold_are_the_best(scores: np.ndarray, count: int, depth: int) -> None:
    found = adaptive_keyframes(scores, count, -math.inf, depth)

    ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    assert found == sorted(ranked[:count])


@pytest.mark.paper("aks")
@given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_keyframes_split_to_the_end_are_one_a_bin(levels: int, width: int, seed: int) -> None:
    bins = 2**levels
    scores = np.random.default_rng(seed).permutation(bins * width).astype(np.float64)

    found = adaptive_keyframes(scores, bins, math.inf, levels)

    assert found == [b * width + int(scores[b * width : (b + 1) * width].argmax()) for b in range(bins)]


@pytest.mark.paper("aks")
@given(score_lists, st.integers(1, 20), st.integers(-3, 9), st.integers(-1000, 1000))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_keyframes_do_not_heed_a_constant(scores: np.ndarray, count: int, threshold: int, shift: int) -> None:
    # The threshold lies half-way between the differences that whole scores can make, out of reach of rounding.
    limit = threshold + math.pi / 1000

    moved = adaptive_keyframes(scores + shift, count, limit, 4)

    assert moved == adaptive_keyframes(scores, count, limit, 4)


@pytest.mark.paper("aks")
def test_keyframes_find_events_that_lie_apart() -> None:
    """Videos with one loud scene and three quiet moments: how many of the four does each sampler see?"""
    seen = {"aks": 0, "top": 0, "uniform": 0}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scores = rng.uniform(0, 0.05, 256)
        events = [int(64 * quarter + rng.integers(5, 59)) for quarter in range(4)]
        loud = events[seed % 4]
        scores[max(0, loud - 12) : loud + 12] += 0.3  # more frames than are asked for
        for event in events:
            scores[event] += 0.2
        picks = {
            "aks": adaptive_keyframes(scores, 8, 0.35, 4),
            "top": adaptive_keyframes(scores, 8, -math.inf, 4),
            "uniform": uniform(256, 8),
        }
        for name, picked in picks.items():
            seen[name] += sum(event in picked for event in events)
    assert seen["aks"] >= 18  # of 20
    assert seen["aks"] > max(seen["top"], seen["uniform"])


def test_the_sampler_scores_candidates_alone() -> None:
    sampler = registry.build("frame-sampler", {"name": "aks", "num_frames": 2, "fps": 1.0, "max_depth": 0})
    asked: list[int] = []

    def relevance(frames: list[int]) -> list[float]:
        asked.extend(frames)
        return [float(frame in (20, 70)) for frame in frames]

    assert sampler(100, 10.0, relevance) == [20, 70]
    assert asked == list(range(0, 100, 10))
    with pytest.raises(InvalidArgumentError, match="need a question"):
        sampler(100, 10.0)
    assert sampler(2, 10.0, relevance) == [0, 1]
