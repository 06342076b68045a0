"""The rows of a source in their order: epochs without end, each a fresh permutation."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def shuffled_rows(numbers: Sequence[int] | NDArray[np.int64], *, size: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Rows of samples ``numbers`` of an endless stream over ``size`` rows; every epoch visits each row once.

    ``key`` (the run's seed and the like) decides the permutations.
    """
    at = np.asarray(numbers, dtype=np.int64)
    epochs, offsets = at // size, at % size
    rows = np.empty(len(at), dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = _permutation(size, (*key, int(epoch)))[offsets[chosen]]
    return rows


@functools.lru_cache(maxsize=16)
def _permutation(size: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    return np.random.default_rng(key).permutation(size)
