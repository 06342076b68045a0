"""Scores out of one number an item, with intervals and baselines."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.evaluation.bootstrap import mean_interval
from rebus.v1.evaluation_pb2 import Score, SubsetScore

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric over items, ``[N]`` each; a baseline is ``None`` where it is not defined."""

    values: Floats
    chance: Floats | None = None
    majority: Floats | None = None
    text_only: Floats | None = None
    # What each item is resampled with; ``None``: by itself.
    clusters: Sequence[Hashable] | None = None
    # Which items the model's training data do not hold; ``None``: they hold none.
    clean: NDArray[np.bool_] | None = None

    def where(self, mask: NDArray[np.bool_]) -> Measured:
        """The items that ``mask`` ``[N]`` keeps."""

        def cut(values: Floats | None) -> Floats | None:
            return None if values is None else values[mask]

        clusters = None if self.clusters is None else [c for c, kept in zip(self.clusters, mask, strict=True) if kept]
        return Measured(
            values=self.values[mask],
            chance=cut(self.chance),
            majority=cut(self.majority),
            text_only=cut(self.text_only),
            clusters=clusters,
            clean=None if self.clean is None else self.clean[mask],
        )


def score(
    benchmark: str, group: str, metric: str, measured: Measured, *, seed: int, groups: Sequence[str] | None = None
) -> Score:
    """The mean with its 95 % interval and the baselines' means; with ``groups``, unweighted means over groups.

    Where the training data hold items, also the mean over those that they do not hold.
    """
    found = mean_interval(measured.values, seed=seed, clusters=measured.clusters, groups=groups)
    message = Score(
        benchmark=benchmark,
        group=group,
        metric=metric,
        value=found.value,
        low=found.low,
        high=found.high,
        num_items=len(measured.values),
    )
    for name in ("chance", "majority", "text_only"):
        values: Floats | None = getattr(measured, name)
        if values is not None:
            setattr(message, name, _mean(values, groups))
    if measured.clean is not None:
        message.clean.CopyFrom(_over_clean(measured, measured.clean, seed, groups))
    return message


def _over_clean(measured: Measured, mask: NDArray[np.bool_], seed: int, groups: Sequence[str] | None) -> SubsetScore:
    kept = measured.where(mask)
    names = None if groups is None else [name for name, chosen in zip(groups, mask, strict=True) if chosen]
    found = mean_interval(kept.values, seed=seed, clusters=kept.clusters, groups=names)
    return SubsetScore(value=found.value, low=found.low, high=found.high, num_items=len(kept.values))


def gain(
    benchmark: str, group: str, metric: str, measured: Measured, *, seed: int, groups: Sequence[str] | None = None
) -> Score:
    """What the images add: the paired difference to ``text_only``, item by item, with its own interval."""
    assert measured.text_only is not None
    paired = Measured(values=measured.values - measured.text_only, clusters=measured.clusters, clean=measured.clean)
    return score(benchmark, group, f"{metric}_gain_over_text_only", paired, seed=seed, groups=groups)


def _mean(values: Floats, groups: Sequence[str] | None) -> float:
    if not len(values):
        return 0.0
    names = np.array(groups if groups is not None else [""] * len(values))
    return float(np.mean([values[names == name].mean() for name in dict.fromkeys(names.tolist())]))
