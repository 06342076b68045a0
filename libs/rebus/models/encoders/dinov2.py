"""DINOv2's image encoder (arXiv 2304.07193): a class token, optional registers, LayerScale, GELU or SwiGLU."""

# Shape suffixes: N images, P prefix tokens, T patches, D width.

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebus.models.encoders.transformer import BlockConfig
from rebus.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class Dinov2Config(VisionTransformerConfig):
    """Sizes of the encoder; the defaults are those of ViT-B/14, whose published positions were learned at 518."""

    trained_size: int = 518
    patch_size: int = 14
    # Tokens that only give the network room to compute ("Vision Transformers Need Registers", arXiv 2309.16588).
    num_registers: int = 0
    # First value of the learned scale of each branch.
    layer_scale: float = 1.0
    # Whether queries, keys and values have biases.
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_registers < 0:
            raise ValueError(f"num_registers={self.num_registers} must not be negative")

    def block(self) -> BlockConfig:
        """Of each layer."""
        return dataclasses.replace(
            super().block(), layer_scale=self.layer_scale, qkv_bias="all" if self.qkv_bias else "none"
        )


@register("encoder", "dinov2", config=Dinov2Config)
class Dinov2(VisionTransformer):
    """DINOv2's vision transformer; weight for weight transformers' ``Dinov2Model``, with registers or without."""

    def __init__(self, config: Dinov2Config) -> None:
        # The models with registers were trained with smoothed interpolation, the others without.
        super().__init__(config, num_prefix_positions=1, antialias=config.num_registers > 0)
        self.num_prefix_tokens = 1 + config.num_registers
        self.class_token = nn.Parameter(torch.randn(config.width) * 0.02)
        registers = torch.randn(config.num_registers, config.width) * 0.02
        self.registers = nn.Parameter(registers) if config.num_registers else None

    def pool(self, pixels: Tensor) -> Tensor:
        """The class token ``[N, D]``."""
        return self.forward_tokens(pixels)[:, 0]

    def _prefix(self) -> Tensor:
        class_1D = self.class_token + self.position[:1]
        return class_1D if self.registers is None else torch.cat([class_1D, self.registers])
