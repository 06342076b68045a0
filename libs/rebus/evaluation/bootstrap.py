"""Seeded percentile bootstrap intervals (Efron 1979), resampling whole clusters.

Questions about one scene are not independent, so scenes are resampled, each with all its questions. Every statistic
here is a mean over groups of ratios of sums, so one matrix product a group serves all resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.errors import invalid

Floats = NDArray[np.float64]
_BLOCK = 250  # resamples held at a time: 250 x 10,000 clusters are 20 MB


@dataclass(frozen=True)
class Interval:
    """A statistic with its interval."""

    value: float
    low: float
    high: float


def mean_interval(
    values: Floats,
    *,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The mean of ``values`` ``[N]`` with its percentile interval; an empty input gives zeros.

    ``clusters`` names what each value belongs to (default: itself). With ``groups``, the statistic is the unweighted
    mean over groups of the groups' means. For a paired comparison, pass the differences.
    """
    if not 0 < level < 1 or num_resamples < 1:
        raise invalid("level", f"need 0 < level={level} < 1 and num_resamples={num_resamples} >= 1")
    if not len(values):
        return Interval(0.0, 0.0, 0.0)
    sums_CG, counts_CG = _tables(values, clusters, groups)
    value = float(_grouped_mean(np.ones((1, len(sums_CG))), sums_CG, counts_CG)[0])
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            _grouped_mean(_resample(rng, min(_BLOCK, num_resamples - done), len(sums_CG)), sums_CG, counts_CG)
            for done in range(0, num_resamples, _BLOCK)
        ]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _tables(
    values: Floats, clusters: Sequence[Hashable] | None, groups: Sequence[Hashable] | None
) -> tuple[Floats, Floats]:
    """Sum and number of the values of each cluster (rows) in each group (columns)."""
    rows = _codes(clusters if clusters is not None else range(len(values)))
    columns = _codes(groups if groups is not None else [0] * len(values))
    if not len(values) == len(rows) == len(columns):
        raise invalid("clusters", f"{len(values)} values, {len(rows)} clusters and {len(columns)} groups differ")
    sums, counts = np.zeros((2, rows.max() + 1, columns.max() + 1))
    np.add.at(sums, (rows, columns), values)
    np.add.at(counts, (rows, columns), 1.0)
    return sums, counts


def _codes(names: Sequence[Hashable]) -> NDArray[np.int64]:
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)


def _resample(rng: np.random.Generator, num_resamples: int, num_clusters: int) -> Floats:
    """How often each cluster is drawn; ``[R, C]``."""
    return rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=num_resamples).astype(float)


def _grouped_mean(weights_RC: Floats, sums_CG: Floats, counts_CG: Floats) -> Floats:
    """Mean over groups of the weighted means; a group that a resample misses does not count there."""
    counts_RG = weights_RC @ counts_CG
    held_RG = counts_RG > 0
    means_RG = np.divide(weights_RC @ sums_CG, counts_RG, out=np.zeros_like(counts_RG), where=held_RG)
    return means_RG.sum(axis=1) / held_RG.sum(axis=1)
