"""Kinds of index, each a function from its settings to an empty FAISS index over inner products.

Vectors have unit length, so the inner product is the cosine. The code of each kind's file stands beside it: FAISS
trusts what it reads, so a file is measured before FAISS sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss

from rebus.registry import NoSettings, register

# FAISS's four-letter code of each kind's file.
MAGIC = {"flat": b"IxFI", "hnsw": b"IHNf"}


@register("index", "flat")
def flat(config: NoSettings, *, dimension: int) -> Any:
    """Exact search: every query against every vector."""
    del config
    return faiss.IndexFlatIP(dimension)


@dataclass(frozen=True, kw_only=True)
class HnswConfig:
    """A navigable graph (arXiv 1603.09320): more links and wider searches find more, and cost more."""

    # Neighbours a vector is linked to on each upper layer; twice as many on the lowest.
    num_links: int = 32
    # Candidates kept while a vector is linked, and while a query is answered.
    build_width: int = 200
    search_width: int = 128

    def __post_init__(self) -> None:
        if not 2 <= self.num_links <= 256:
            raise ValueError(f"num_links={self.num_links} is outside 2..256")
        if self.build_width < self.num_links or self.search_width < 1:
            raise ValueError(
                f"need build_width={self.build_width} >= num_links={self.num_links} "
                f"and search_width={self.search_width} >= 1"
            )


@register("index", "hnsw", config=HnswConfig)
def hnsw(config: HnswConfig, *, dimension: int) -> Any:
    """Approximate search in a navigable small-world graph; its time grows with the logarithm of the size."""
    index = faiss.IndexHNSWFlat(dimension, config.num_links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = config.build_width
    index.hnsw.efSearch = config.search_width
    return index
