"""The last token's hidden state as embedding: in a causal decoder the only one that has read everything."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.embedding_heads import pooling
from rebus.registry import NoSettings, register


@register("embedding-head", "last-token")
class LastTokenHead(nn.Module):
    """The normalised hidden state of a document's last token."""

    def __init__(self, config: NoSettings, *, width_in: int) -> None:
        super().__init__()
        self.width = width_in

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of ``[B, S, D]``; see ``EmbeddingHead``."""
        return F.normalize(pooling.last_token(hidden, mask), dim=-1)

    def forward_packed(self, hidden: Tensor, documents: Tensor, num_documents: int) -> Tensor:
        """Unit vectors ``[num_documents, D]`` of ``[T, D]``; see ``EmbeddingHead``."""
        return F.normalize(pooling.last_token_packed(hidden, documents, num_documents), dim=-1)
