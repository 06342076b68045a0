"""Clusters of unit vectors."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from rebus.errors import invalid

Vectors = NDArray[np.float32]
_ROWS_A_CLUSTER = 512


def clustered(vectors: Vectors, clusters: int, seed: int) -> tuple[NDArray[np.int32], Vectors]:
    """Spherical k-means: the cluster of each unit vector ``[N, D]``, and its cosine to the cluster's centre.

    ``clusters`` 0: one for every 512 vectors.
    """
    count = min(clusters or -(-len(vectors) // _ROWS_A_CLUSTER), len(vectors))
    kmeans = faiss.Kmeans(vectors.shape[1], count, seed=seed, spherical=True, min_points_per_centroid=1)
    kmeans.train(vectors)
    assert kmeans.index is not None
    nearness, nearest = kmeans.index.search(vectors, 1)
    return nearest[:, 0].astype(np.int32), nearness[:, 0]


def matrix(rows: Sequence[bytes], name: str) -> Vectors:
    """float32 ``[N, D]`` of vectors kept as bytes; ``InvalidArgumentError`` naming the column if dimensions differ."""
    if len({len(row) for row in rows}) > 1:
        raise invalid(name, "its vectors have different dimensions")
    return np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), -1)
