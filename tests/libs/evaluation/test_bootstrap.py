"""The bootstrap against a plain loop, closed forms and its own coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rebus.errors import InvalidArgumentError
from rebus.evaluation.bootstrap import Interval, mean_interval


def test_equals_a_plain_loop_over_resampled_clusters() -> None:
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.5, 1.0])
    clusters = ["a", "a", "b", "c", "c", "c", "d"]
    groups = ["x", "y", "x", "x", "y", "y", "y"]
    found = mean_interval(values, seed=3, clusters=clusters, groups=groups, num_resamples=200)

    rng = np.random.default_rng(3)
    means = []
    for draws in rng.multinomial(4, [0.25] * 4, size=200):
        bags: dict[str, list[float]] = {}
        for cluster, times in zip("abcd", draws, strict=True):
            members = [i for i, c in enumerate(clusters) if c == cluster] * times
            for i in members:
                bags.setdefault(groups[i], []).append(values[i])
        means.append(np.mean([np.mean(bag) for bag in bags.values()]))
    assert found.value == pytest.approx((1.0 + 0.375) / 2)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_same_seed_same_interval_and_other_seed_another() -> None:
    values = np.random.default_rng(0).random(50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_width_matches_the_normal_approximation() -> None:
    values = np.repeat([0.0, 1.0], [700, 300])
    found = mean_interval(values, seed=0, num_resamples=4000)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert found.value == 0.3
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.003)


def test_clusters_of_equal_answers_widen_the_interval() -> None:
    """Ten copies of each value carry no more information than one: the interval is that of the 40 values."""
    values = np.repeat([0.0, 1.0], 20)
    single = mean_interval(values, seed=5)
    copied = mean_interval(np.repeat(values, 10), seed=5, clusters=np.repeat(np.arange(40), 10).tolist())
    assert copied == single


def test_a_paired_difference_of_equal_systems_is_exactly_zero() -> None:
    values = np.random.default_rng(0).random(30)
    assert mean_interval(values - values, seed=0) == Interval(0.0, 0.0, 0.0)


def test_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for trial in range(300):
        found = mean_interval(rng.normal(2.0, 1.0, 80), seed=trial, num_resamples=200)
        covered += found.low <= 2.0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_nothing_to_resample_and_bad_settings() -> None:
    assert mean_interval(np.zeros(0), seed=0) == Interval(0.0, 0.0, 0.0)
    with pytest.raises(InvalidArgumentError, match="level=1"):
        mean_interval(np.ones(2), seed=0, level=1.0)
    with pytest.raises(InvalidArgumentError, match="2 values, 1 clusters"):
        mean_interval(np.ones(2), seed=0, clusters=["a"])
