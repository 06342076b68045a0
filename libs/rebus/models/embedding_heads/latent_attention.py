"""Latent attention pooling of NV-Embed (arXiv 2405.17428): tokens look up a learned dictionary first."""

# Shape suffixes: B rows, S tokens of a row, T tokens of all documents, L latents, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.cross_attention import CrossAttention
from rebus.models.embedding_heads import pooling
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig:
    """Sizes of the head."""

    # Entries of the dictionary.
    num_latents: int = 512
    num_heads: int = 8
    # Width of one head; 0 shares the decoder's width among them.
    head_width: int = 0

    def __post_init__(self) -> None:
        if self.num_latents < 1 or self.num_heads < 1 or self.head_width < 0:
            raise ValueError(
                f"need num_latents={self.num_latents} >= 1, num_heads={self.num_heads} >= 1 "
                f"and head_width={self.head_width} >= 0"
            )


@register("embedding-head", "latent-attention", config=LatentAttentionConfig)
class LatentAttentionHead(nn.Module):
    """Tokens as queries over learned keys and values, a gated feed-forward block, then the normalised mean."""

    def __init__(self, config: LatentAttentionConfig, *, width_in: int) -> None:
        super().__init__()
        self.width = width_in
        self.latents = nn.Parameter(torch.randn(config.num_latents, width_in))
        self.norm1 = nn.LayerNorm(width_in)
        self.latent_norm = nn.LayerNorm(width_in)
        self.attention = CrossAttention(
            width_in, num_heads=config.num_heads, head_width=config.head_width or None, bias=False
        )
        self.norm2 = nn.LayerNorm(width_in)
        self.fc1 = nn.Linear(width_in, 8 * width_in)
        self.fc2 = nn.Linear(4 * width_in, width_in)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of ``[B, S, D]``; see ``EmbeddingHead``."""
        return F.normalize(pooling.mean(self._look_up(hidden), mask), dim=-1)

    def forward_packed(self, hidden: Tensor, documents: Tensor, num_documents: int) -> Tensor:
        """Unit vectors ``[num_documents, D]`` of ``[T, D]``; see ``EmbeddingHead``."""
        x_TD = self._look_up(hidden[None])[0]
        return F.normalize(pooling.mean_packed(x_TD, documents, num_documents), dim=-1)

    def _look_up(self, x_BSD: Tensor) -> Tensor:
        """Each token by itself, so neither padding nor neighbours matter."""
        latents_BLD = self.latent_norm(self.latents).expand(len(x_BSD), -1, -1)
        x_BSD = x_BSD + self.attention(self.norm1(x_BSD), latents_BLD)
        value, gate = self.fc1(self.norm2(x_BSD)).chunk(2, dim=-1)
        return x_BSD + self.fc2(value * F.gelu(gate))
