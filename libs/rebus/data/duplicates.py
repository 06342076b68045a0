"""From pairs of near-duplicates to groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Pairs = NDArray[np.int64]


def firsts(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """int64 ``[count]``: the smallest member of each item's connected component, given edges ``[E, 2]``."""
    edges = (np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1]))
    _, labels = connected_components(coo_array(edges, shape=(count, count)), directed=False)
    _, smallest, member = np.unique(labels, return_index=True, return_inverse=True)
    return smallest[member]
