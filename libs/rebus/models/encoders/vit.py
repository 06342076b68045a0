"""The Vision Transformer (arXiv 2010.11929) as small models here are trained from scratch: patches, no class token."""

from __future__ import annotations

from dataclasses import dataclass

from rebus.models.encoders.vision_transformer import VisionTransformer, VisionTransformerConfig
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class VitConfig(VisionTransformerConfig):
    """Sizes of the encoder."""

    image_size: int = 64
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    hidden_width: int = 512

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.width % self.num_heads:
            raise ValueError(
                f"image_size={self.image_size} must be divisible by patch_size={self.patch_size}, "
                f"width={self.width} by num_heads={self.num_heads}"
            )
        super().__post_init__()


@register("encoder", "vit", config=VitConfig, paper="mm1")
class Vit(VisionTransformer):
    """Patch embedding, learned positions, pre-norm blocks, a final norm."""
