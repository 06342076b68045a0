"""CLIP's image encoder (arXiv 2103.00020): a class token, a norm before the first block, quick GELU."""

# Shape suffixes: N images, P prefix tokens, T patches, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebus.models.encoders.transformer import Activation
from rebus.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(VisionTransformerConfig):
    """Sizes of the encoder; the defaults are those of ViT-B/16."""

    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5


@register("encoder", "clip", config=ClipVisionConfig)
class ClipVision(VisionTransformer):
    """CLIP's vision transformer; weight for weight transformers' ``CLIPVisionModel``."""

    num_prefix_tokens = 1

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__(config, num_prefix_positions=1, patch_bias=False)
        self.class_token = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.pre_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        # The last norm is the class token's alone: patches leave as the last block made them.
        self.norm, self.pool_norm = nn.Identity(), self.norm

    def pool(self, pixels: Tensor) -> Tensor:
        """The normed class token ``[N, D]``, which CLIP compares with texts after a projection."""
        return self.pool_norm(self.forward_tokens(pixels)[:, 0])

    def _tokens(self, patches_NTD: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.pre_norm(super()._tokens(patches_NTD, grid))

    def _prefix(self) -> Tensor:
        return self.class_token + self.position[:1]
