"""Retrieval metrics over the rank of the best relevant candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.errors import invalid
from rebus.registry import NoSettings, register


@dataclass(frozen=True, kw_only=True)
class RecallConfig:
    """Where the ranking is cut."""

    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")


def relevant_ranks(similarities: NDArray[np.floating], relevant: Sequence[set[int]]) -> NDArray[np.int64]:
    """Rank (from 1) of the best relevant candidate of each query; ``[Q, C]`` similarities -> ``[Q]``.

    A tie with a candidate that is not relevant counts against the model, so constant embeddings rank last.
    Raises ``InvalidArgumentError`` where a query has no relevant candidate.
    """
    ranks = []
    for query, (row, wanted) in enumerate(zip(similarities, relevant, strict=True)):
        if not wanted:
            raise invalid(f"relevant[{query}]", "must hold at least one candidate")
        hits = np.zeros(row.shape, dtype=bool)
        hits[sorted(wanted)] = True
        ranks.append(1 + int(np.sum(row[~hits] >= row[hits].max())))
    return np.array(ranks, dtype=np.int64)


@register("metric", "recall_at_k", config=RecallConfig)
def recall_at_k(config: RecallConfig, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where a relevant candidate is among the first ``k``, else 0; ``[Q]`` ranks -> ``[Q]``."""
    return (ranks <= config.k).astype(np.float64)


@register("metric", "reciprocal_rank")
def reciprocal_rank(config: NoSettings, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """``1 / rank`` of the best relevant candidate; its mean is the mean reciprocal rank. ``[Q]`` -> ``[Q]``."""
    return 1.0 / ranks
