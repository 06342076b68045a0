"""The Vision Transformer (arXiv 2010.11929), as CLIP-style encoders use it: patches, no class token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebus.models.encoders.transformer import EncoderBlock
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Sizes of the encoder."""

    image_size: int = 64
    # Side of a square patch, in pixels.
    patch_size: int = 16
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    hidden_width: int = 512
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.width % self.num_heads:
            raise ValueError(
                f"image_size={self.image_size} must be divisible by patch_size={self.patch_size}, "
                f"width={self.width} by num_heads={self.num_heads}"
            )


@register("encoder", "vit", config=VitConfig, paper="mm1")
class Vit(nn.Module):
    """Patch embedding, learned positions, pre-norm blocks, a final norm."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.image_size, self.width = config.image_size, config.width
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.position = nn.Parameter(torch.randn(side * side, config.width) * 0.02)
        self.blocks = nn.ModuleList(
            [
                EncoderBlock(config.width, config.num_heads, config.hidden_width, config.norm_eps)
                for _ in range(config.num_layers)
            ]
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features ``[N, T, D]`` of images ``[N, 3, side, side]``, row by row of the grid."""
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
