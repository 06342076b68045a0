"""An index in memory: vectors with the rows they stand for, and the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from rebus import registry
from rebus.errors import invalid

MAX_TOP_K = 1000
# Queries from which on distances are computed by BLAS, all at once. FAISS's default lies in the hundreds, which makes a
# batch of 64 several times slower; from the first query on would make single ones several times slower
# (``tools/bench/retrieval.py`` measures it).
BLAS_QUERIES = 4
# Threads of one search. Calls run side by side on the cores; with threads of its own each would wait for the
# others', and on busy cores that costs far more than it gains.
SEARCH_THREADS = 1


@dataclass(frozen=True)
class Hit:
    """A vector found: its row in the dataset version, its sample's id, its cosine with the query."""

    row: int
    sample_id: str
    score: float


class SearchIndex:
    """A FAISS index and the rows of its vectors. Searches may run in many threads at once."""

    def __init__(self, index: Any, rows: NDArray[np.int64], sample_ids: list[str]) -> None:
        if not index.ntotal == len(rows) == len(sample_ids):
            raise ValueError(f"{index.ntotal} vectors, {len(rows)} rows and {len(sample_ids)} ids do not match")
        self.faiss_index = index
        self.rows = rows
        self.sample_ids = sample_ids

    @property
    def num_vectors(self) -> int:
        """Vectors held."""
        return len(self.rows)

    @property
    def dimension(self) -> int:
        """Dimensions of a vector."""
        return self.faiss_index.d

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[Hit]]:
        """For each of ``queries`` ``[N, dimension]`` the up to ``k`` nearest rows, best first.

        Raises ``InvalidArgumentError`` for another shape, a value that is not finite, or ``k`` outside 1..1000.
        """
        scores, positions = self.search_arrays(queries, k)
        return [
            [
                Hit(int(self.rows[at]), self.sample_ids[at], min(1.0, max(-1.0, float(score))))
                for score, at in zip(row_scores, row_positions, strict=True)
                if at >= 0  # an approximate index may find fewer
            ]
            for row_scores, row_positions in zip(scores, positions, strict=True)
        ]

    def search_arrays(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and positions ``[N, min(k, num_vectors)]``, best first; position -1 where none was found."""
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise invalid("query", f"expected vectors [N, {self.dimension}], found {list(queries.shape)}")
        if not np.isfinite(queries).all():
            raise invalid("query", "holds a value that is not finite")
        if not 1 <= k <= MAX_TOP_K:
            raise invalid("top_k", f"{k} is outside 1..{MAX_TOP_K}")
        faiss.omp_set_num_threads(SEARCH_THREADS)  # counts for the calling thread alone
        # FAISS compares it with queries times dimensions. It is one variable for all threads; a search that reads what
        # another wrote is slower or faster, not wrong.
        faiss.cvar.distance_compute_blas_threshold = BLAS_QUERIES * self.dimension
        return self.faiss_index.search(np.ascontiguousarray(queries, np.float32), min(k, self.num_vectors))


def build_index(
    spec: dict[str, Any], vectors: NDArray[np.float32], rows: NDArray[np.int64], sample_ids: list[str]
) -> SearchIndex:
    """Builds ``{"name": "hnsw", **settings}`` over unit vectors ``[N, D]``; the same input gives the same bytes."""
    if vectors.ndim != 2 or not len(vectors):
        raise invalid("vectors", f"expected [N, D] with at least one vector, found {list(vectors.shape)}")
    index = registry.build("index", spec, dimension=vectors.shape[1])
    faiss.omp_set_num_threads(1)  # threads would link a graph in another order each time
    index.add(np.ascontiguousarray(vectors, np.float32))
    return SearchIndex(index, rows, sample_ids)
