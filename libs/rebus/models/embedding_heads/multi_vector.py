"""Late interaction: a unit vector a token, compared by MaxSim (ColBERT, arXiv 2004.12832; ColPali, 2407.01449)."""

# Shape suffixes: Q queries, S tokens of a query, D documents, T tokens of a document, E dimensions of a vector.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class MultiVectorConfig:
    """Sizes of the head."""

    # Dimensions of a token's vector.
    width: int = 128

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1")


@register("embedding-head", "multi-vector", config=MultiVectorConfig)
class MultiVectorHead(nn.Module):
    """Every token's hidden state projected to a unit vector of its own."""

    def __init__(self, config: MultiVectorConfig, *, width_in: int) -> None:
        super().__init__()
        self.width = config.width
        self.proj = nn.Linear(width_in, config.width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Vectors ``[B, S, width]`` of ``[B, S, D]``, zeros at padding; see ``EmbeddingHead``."""
        return F.normalize(self.proj(hidden), dim=-1).masked_fill(~mask[..., None], 0.0)

    def forward_packed(self, hidden: Tensor, documents: Tensor, num_documents: int) -> Tensor:
        """Vectors ``[T, width]`` of ``[T, D]``, zeros at padding; see ``EmbeddingHead``."""
        return F.normalize(self.proj(hidden), dim=-1).masked_fill((documents < 0)[:, None], 0.0)


def max_sim(queries_QSE: Tensor, query_mask_QS: Tensor, documents_DTE: Tensor, document_mask_DT: Tensor) -> Tensor:
    """Scores ``[Q, D]``: each query token's best match in the document, summed over the query (ColBERT, equation 3).

    The masks (bool) are False at padding; every document needs a token.
    """
    similarity_QSDT = torch.einsum("qse,dte->qsdt", queries_QSE, documents_DTE)
    best_QSD = similarity_QSDT.masked_fill(~document_mask_DT, -torch.inf).amax(-1)
    return best_QSD.masked_fill(~query_mask_QS[..., None], 0.0).sum(1)


def max_sim_packed(
    query_vectors: Tensor, queries: Tensor, document_vectors: Tensor, documents: Tensor, *, shape: tuple[int, int]
) -> Tensor:
    """The same of packed vectors ``[tokens, E]``, each with its query or document (int64 ``[tokens]``, -1 at padding).

    ``shape`` counts queries and documents.
    """
    query_vectors, queries = query_vectors[queries >= 0], queries[queries >= 0]
    document_vectors, documents = document_vectors[documents >= 0], documents[documents >= 0]
    similarity = query_vectors @ document_vectors.T
    best = similarity.new_full((len(queries), shape[1]), -torch.inf)
    best = best.scatter_reduce(1, documents.expand_as(similarity), similarity, "amax")
    return best.new_zeros(shape).index_add(0, queries, best)
