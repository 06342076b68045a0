"""Which rows a step draws: a pure function of the step, so that a resumed run draws what an uninterrupted one would.

The stream is indexed by global sample number, never by worker or rank: sample ``n`` of a source is row
``shuffled_row(n, ...)``, each epoch a fresh permutation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.registry import NoSettings, register


@dataclass(frozen=True)
class Draw:
    """The samples that one step takes of one source: numbers ``start .. start + count - 1`` of its stream."""

    source: str
    start: int
    count: int


@register("mixer", "weighted", config=NoSettings, paper="mm1")
class WeightedMixer:
    """Draws every source in its exact share: after any step each is within one sample of its weight.

    The heaviest source takes what rounding leaves over.
    """

    def __init__(self, config: NoSettings, *, weights: Mapping[str, float], batch_size: int) -> None:
        del config
        total = sum(weights.values())
        if not weights or min(weights.values()) < 0 or total <= 0:
            raise ValueError(f"mixture weights must be >= 0 and not all 0, got {dict(weights)}")
        self._shares = {name: weight / total for name, weight in weights.items() if weight > 0}
        self._heaviest = max(self._shares, key=lambda name: self._shares[name])
        self._batch_size = batch_size
        others = [share for name, share in self._shares.items() if name != self._heaviest]
        # Each of the others may take one sample more than its share in a step; the heaviest must afford them all.
        if batch_size * self._shares[self._heaviest] < len(others):
            raise ValueError(f"batch_size={batch_size} is too small for the mixture {dict(weights)}")

    def draws(self, step: int) -> list[Draw]:
        """What ``step`` takes of each source; the counts sum to the batch size."""
        before, after = self._taken(step), self._taken(step + 1)
        return [Draw(name, before[name], after[name] - before[name]) for name in self._shares]

    def _taken(self, steps: int) -> dict[str, int]:
        """Samples taken of each source in the first ``steps`` steps."""
        slots = steps * self._batch_size
        taken = {name: int(slots * share + 0.5) for name, share in self._shares.items()}
        taken[self._heaviest] = 0
        taken[self._heaviest] = slots - sum(taken.values())
        return taken


def shuffled_rows(numbers: range, *, size: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Rows of samples ``numbers`` of an endless stream over ``size`` rows; every epoch visits each row once.

    ``key`` (the run's seed and the like) decides the permutations.
    """
    at = np.arange(numbers.start, numbers.stop)
    epochs, offsets = at // size, at % size
    rows = np.empty(len(at), dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = _permutation(size, (*key, int(epoch)))[offsets[chosen]]
    return rows


@functools.lru_cache(maxsize=16)
def _permutation(size: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    return np.random.default_rng(key).permutation(size)
