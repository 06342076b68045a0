"""InternViT (InternVL, arXiv 2312.14238): a class token, LayerScale, in the 6B form RMSNorm and normed queries."""

# Shape suffixes: N images, P prefix tokens, T patches, D width.

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebus.models.encoders.transformer import BlockConfig, Norm
from rebus.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class InternVitConfig(VisionTransformerConfig):
    """Sizes of the encoder; the defaults are those of InternViT-300M-448px, the encoder of InternVL 2.5 and 3."""

    image_size: int = 448
    patch_size: int = 14
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    hidden_width: int = 4096
    # InternViT-6B has ``rms``, ``qk_norm`` and no biases of queries, keys and values.
    norm: Norm = "layer"
    qk_norm: bool = False
    qkv_bias: bool = True
    # First value of the learned scale of each branch.
    layer_scale: float = 0.1
    # Whether the last layer's features go through a norm; those of published models do not.
    final_norm: bool = False

    def block(self) -> BlockConfig:
        """Of each layer."""
        return dataclasses.replace(
            super().block(),
            norm=self.norm,
            qk_norm=self.qk_norm,
            qkv_bias="all" if self.qkv_bias else "none",
            layer_scale=self.layer_scale,
        )


@register("encoder", "internvit", config=InternVitConfig, paper="internvl25")
class InternVit(VisionTransformer):
    """InternVL's vision transformer; weight for weight transformers' ``InternVLVisionModel``."""

    num_prefix_tokens = 1

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__(config, num_prefix_positions=1)
        self.class_token = nn.Parameter(torch.randn(config.width) * 0.02)
        if not config.final_norm:
            self.norm = nn.Identity()

    def _prefix(self) -> Tensor:
        return self.class_token + self.position[:1]
