"""The perceiver resampler of Flamingo (arXiv 2204.14198) as Idefics2 builds it: any number of tokens to a fixed one."""

# Shape suffixes: N images, T image tokens, L latents, D decoder width.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.cross_attention import CrossAttention
from rebus.models.gated_mlp import GatedMlp
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class PerceiverResamplerConfig:
    """Sizes of the connector; the defaults are Idefics2's."""

    # Learned latents: output tokens an image.
    num_tokens: int = 64
    num_layers: int = 3
    num_heads: int = 16
    num_kv_heads: int = 4
    head_width: int = 96
    # Inner width of the gated projection to the decoder's width, which comes first; 0 takes 4 times that width.
    projection_hidden_width: int = 0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        sizes = ("num_tokens", "num_layers", "num_heads", "num_kv_heads", "head_width")
        if bad := [f"{name}={getattr(self, name)}" for name in sizes if getattr(self, name) < 1]:
            raise ValueError(f"{', '.join(bad)} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be divisible by num_kv_heads={self.num_kv_heads}")
        if self.projection_hidden_width < 0:
            raise ValueError(f"projection_hidden_width={self.projection_hidden_width} must not be negative")


@register("connector", "perceiver-resampler", config=PerceiverResamplerConfig, paper=("idefics2", "xgen-mm"))
class PerceiverResampler(nn.Module):
    """Learned latents read the projected image tokens and themselves, layer by layer."""

    reads_padded: Literal[True] = True

    def __init__(
        self, config: PerceiverResamplerConfig, *, width_in: int, width_out: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.num_tokens = config.num_tokens
        self.grid = None
        hidden_width = config.projection_hidden_width or 4 * width_out
        self.modality_projection = GatedMlp(width_in, hidden_width, width_out)
        self.latents = nn.Parameter(torch.randn(config.num_tokens, width_out))
        self.layers = nn.ModuleList([_Layer(config, width_out) for _ in range(config.num_layers)])
        self.norm = nn.RMSNorm(width_out, eps=config.norm_eps)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps ``[N, T, width_in]`` to ``[N, num_tokens, width_out]``; ``mask`` ``[N, T]`` is False at padding."""
        context_NTD = self.modality_projection(features)
        latents_NLD = self.latents.expand(len(features), -1, -1)
        visible = None
        if mask is not None:
            visible = F.pad(mask, (0, self.num_tokens), value=True)[:, None, None]
        for layer in self.layers:
            latents_NLD = layer(latents_NLD, context_NTD, visible)
        return self.norm(latents_NLD)


class _Layer(nn.Module):
    def __init__(self, config: PerceiverResamplerConfig, width: int) -> None:
        super().__init__()
        self.input_latents_norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.input_context_norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.self_attn = CrossAttention(
            width, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_width=config.head_width
        )
        self.post_attention_layernorm = nn.RMSNorm(width, eps=config.norm_eps)
        self.mlp = GatedMlp(width, 4 * width, width)

    def forward(self, latents_NLD: Tensor, context_NTD: Tensor, visible: Tensor | None) -> Tensor:
        normed_NLD = self.input_latents_norm(latents_NLD)
        seen = torch.cat([self.input_context_norm(context_NTD), normed_NLD], dim=1)
        latents_NLD = latents_NLD + self.self_attn(normed_NLD, seen, visible)
        return latents_NLD + self.mlp(self.post_attention_layernorm(latents_NLD))
