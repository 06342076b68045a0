"""What an embedding head offers: one answer for padded rows and for packed documents."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class EmbeddingHead(Protocol):
    """Built with ``width_in``, the decoder's width. Every document needs a token."""

    # Dimensions of an embedding.
    width: int

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors of hidden states ``[B, S, D]``; ``mask`` (bool ``[B, S]``) is False at padding on either side.

        ``[B, width]``, of heads that give each token its own ``[B, S, width]`` with zeros at padding.
        """
        ...

    def forward_packed(self, hidden: Tensor, documents: Tensor, num_documents: int) -> Tensor:
        """The same of hidden states ``[T, D]`` whose tokens belong to ``documents`` (int64 ``[T]``), -1 at padding.

        ``[num_documents, width]``, of heads that give each token its own ``[T, width]``.
        """
        ...
