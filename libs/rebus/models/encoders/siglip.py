"""SigLIP's image encoder (arXiv 2303.15343): patches only, pooled by attention; and two forms for any aspect ratio."""

# Shape suffixes: B batch, T tokens, D width, N heads, H head dim.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.attention import dense_attention
from rebus.models.encoders.positions import bucketed_positions, interpolate_positions
from rebus.models.encoders.transformer import ACTIVATIONS, Activation, BlockConfig
from rebus.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class SiglipVisionConfig(VisionTransformerConfig):
    """Sizes of the encoder; the defaults are those of ViT-B/16."""

    activation: Activation = "gelu_tanh"
    # Whether ``pool`` has the attention head that images are compared with texts by; else it is the tokens' mean.
    use_head: bool = False
    # Whether features of the last layer go through the norm; LLaVA's do not.
    feature_norm: bool = True


@dataclass(frozen=True, kw_only=True)
class SiglipNavitConfig(VisionTransformerConfig):
    """Sizes of the encoder; ``trained_size`` bounds the table of positions, not the images."""

    activation: Activation = "gelu_tanh"


@register("encoder", "siglip", config=SiglipVisionConfig)
class SiglipVision(VisionTransformer):
    """SigLIP's vision transformer; weight for weight transformers' ``SiglipVisionModel``."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__(config)
        self.feature_norm = config.feature_norm
        self.head = AttentionPool(config.block()) if config.use_head else None

    def pool(self, pixels: Tensor) -> Tensor:
        """One vector ``[N, D]`` an image: by the attention head, or the mean of the tokens."""
        tokens = self.forward_tokens(pixels)
        return tokens.mean(1) if self.head is None else self.head(tokens)


@register("encoder", "siglip2", config=SiglipVisionConfig)
class Siglip2Vision(SiglipVision):
    """SigLIP 2 (arXiv 2502.14786) of the kind ``naflex``: any aspect ratio, positions resized to it.

    Weight for weight transformers' ``Siglip2VisionModel``; images of different sizes go through ``forward_packed``
    together.
    """

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        return interpolate_positions(self.position, grid, mode="bilinear", antialias=True)


@register("encoder", "siglip-navit", config=SiglipNavitConfig, paper="idefics2")
class SiglipNavit(VisionTransformer):
    """SigLIP at native aspect ratios (NaViT, arXiv 2307.06304), as Idefics2 trained it: positions are fractions.

    Weight for weight transformers' ``Idefics2VisionTransformer``; images of different sizes go through
    ``forward_packed`` together.
    """

    def __init__(self, config: SiglipNavitConfig) -> None:
        super().__init__(config)
        self._side = config.position_side

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        return self.position[bucketed_positions(grid, self._side, self.position.device)]


class AttentionPool(nn.Module):
    """A learned query looks at all tokens; a feed-forward part follows (Set Transformer's PMA, arXiv 1810.00825)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self._activate = ACTIVATIONS[config.activation]
        self.query_D = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        # Of the query, then of keys and values.
        self.qkv_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.fc1 = nn.Linear(config.width, config.fc1_width)
        self.fc2 = nn.Linear(config.hidden_width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps ``[B, T, D]`` to ``[B, D]``."""
        batch, _, width = x_BTD.shape
        weights, biases = (part.split([width, 2 * width]) for part in (self.qkv_proj.weight, self.qkv_proj.bias))
        q_B1D = F.linear(self.query_D, weights[0], biases[0]).expand(batch, 1, -1)
        k_BTD, v_BTD = F.linear(x_BTD, weights[1], biases[1]).chunk(2, dim=-1)
        heads = (part.unflatten(-1, (self.num_heads, -1)) for part in (q_B1D, k_BTD, v_BTD))
        x_BD = self.out_proj(dense_attention(*heads, causal=False).flatten(2))[:, 0]
        return x_BD + self.fc2(self._activate(self.fc1(self.norm(x_BD))))
