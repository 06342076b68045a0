"""Attention pooling with learned queries: MM1's connector, and with a feed-forward block SigLIP's pooling head."""

# Shape suffixes: N images, T image tokens, Q queries, D encoder width.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.cross_attention import CrossAttention
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class AttentionPoolConfig:
    """Sizes of the connector."""

    # Learned queries: output tokens an image.
    num_tokens: int = 64
    num_heads: int = 4
    # Inner width of a feed-forward block after the attention; 0 leaves it out.
    hidden_width: int = 0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.num_heads < 1 or self.hidden_width < 0:
            raise ValueError(
                f"need num_tokens={self.num_tokens} >= 1, num_heads={self.num_heads} >= 1 "
                f"and hidden_width={self.hidden_width} >= 0"
            )


@register("connector", "attention-pool", config=AttentionPoolConfig, paper="mm1")
class AttentionPoolConnector(nn.Module):
    """Learned queries attend to all image tokens; what they find is projected."""

    def __init__(self, config: AttentionPoolConfig, *, width_in: int, width_out: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.num_tokens = config.num_tokens
        self.grid = None
        self.queries = nn.Parameter(torch.randn(config.num_tokens, width_in) * width_in**-0.5)
        self.attention = CrossAttention(width_in, num_heads=config.num_heads, bias=True)
        self.mlp = _FeedForward(width_in, config.hidden_width, config.norm_eps) if config.hidden_width else None
        self.proj = nn.Linear(width_in, width_out)

    def forward(self, features_NTD: Tensor) -> Tensor:
        """Maps ``[N, T, width_in]`` to ``[N, num_tokens, width_out]``."""
        x_NQD = self.attention(self.queries.expand(len(features_NTD), -1, -1), features_NTD)
        if self.mlp is not None:
            x_NQD = x_NQD + self.mlp(x_NQD)
        return self.proj(x_NQD)


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden_width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))
