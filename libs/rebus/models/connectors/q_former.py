"""The Q-Former of BLIP-2 (arXiv 2301.12597, section 3.1): learned queries through a BERT that looks at the image."""

# Shape suffixes: N images, T image tokens, Q queries, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.cross_attention import CrossAttention
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """Sizes of the connector; the defaults are BLIP-2's. It is built without BERT's dropout."""

    # Learned queries: output tokens an image.
    num_tokens: int = 32
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    hidden_width: int = 3072
    # Layers 0, this, twice this, ... look at the image.
    cross_attention_frequency: int = 2
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        sizes = ("num_tokens", "width", "num_layers", "num_heads", "hidden_width", "cross_attention_frequency")
        if bad := [f"{name}={getattr(self, name)}" for name in sizes if getattr(self, name) < 1]:
            raise ValueError(f"{', '.join(bad)} must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width} must be divisible by num_heads={self.num_heads}")


@register("connector", "q-former", config=QFormerConfig)
class QFormer(nn.Module):
    """Learned queries attend to each other and, every few layers, to the image; then one linear layer."""

    def __init__(self, config: QFormerConfig, *, width_in: int, width_out: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.num_tokens = config.num_tokens
        self.grid = None
        self.query_tokens = nn.Parameter(torch.randn(1, config.num_tokens, config.width) * 0.02)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(
            [
                _Block(config, None if i % config.cross_attention_frequency else width_in)
                for i in range(config.num_layers)
            ]
        )
        self.proj = nn.Linear(config.width, width_out)

    def forward(self, features_NTD: Tensor) -> Tensor:
        """Maps ``[N, T, width_in]`` to ``[N, num_tokens, width_out]``."""
        x_NQD = self.norm(self.query_tokens).expand(len(features_NTD), -1, -1)
        for block in self.blocks:
            x_NQD = block(x_NQD, features_NTD)
        return self.proj(x_NQD)


class _Block(nn.Module):
    """BERT's post-norm block; it looks at an image of width ``width_in``, or at none."""

    def __init__(self, config: QFormerConfig, width_in: int | None) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.self_attn = CrossAttention(width, num_heads=config.num_heads, bias=True)
        self.self_attn_norm = nn.LayerNorm(width, eps=eps)
        self.cross_attn: CrossAttention | None = None
        if width_in is not None:
            self.cross_attn = CrossAttention(width, context_width=width_in, num_heads=config.num_heads, bias=True)
            self.cross_attn_norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, config.hidden_width)
        self.fc2 = nn.Linear(config.hidden_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x_NQD: Tensor, features: Tensor) -> Tensor:
        x_NQD = self.self_attn_norm(x_NQD + self.self_attn(x_NQD, x_NQD))
        if self.cross_attn is not None:
            x_NQD = self.cross_attn_norm(x_NQD + self.cross_attn(x_NQD, features))
        return self.mlp_norm(x_NQD + self.fc2(F.gelu(self.fc1(x_NQD))))
