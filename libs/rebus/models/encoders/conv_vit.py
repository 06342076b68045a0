"""A convolutional stem before transformer blocks ("Early Convolutions Help Transformers See Better", arXiv 2106.14881).

At a few thousand images and minutes of CPU, the stem learns shapes and colours that patches do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rebus.models.encoders.layered import LayeredEncoder
from rebus.models.encoders.transformer import BlockConfig, make_blocks
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class ConvVitConfig:
    """Sizes of the encoder."""

    image_size: int = 64
    # Output channels of the stride-2 convolutions; the last is the width. Each halves the grid.
    channels: list[int] = field(default_factory=lambda: [32, 64, 96, 128])
    # Transformer blocks after the stem; 0 leaves a purely convolutional encoder.
    num_layers: int = 0
    num_heads: int = 4
    hidden_width: int = 256
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if not self.channels or self.image_size % 2 ** len(self.channels):
            raise ValueError(
                f"image_size={self.image_size} must be divisible by 2 ** {len(self.channels)}, once a convolution"
            )
        if self.num_layers and self.channels[-1] % self.num_heads:
            raise ValueError(f"channels[-1]={self.channels[-1]} must be divisible by num_heads={self.num_heads}")


@register("encoder", "conv-vit", config=ConvVitConfig)
class ConvVit(LayeredEncoder):
    """Stride-2 convolutions with batch norm, learned positions, transformer blocks, a final norm."""

    def __init__(self, config: ConvVitConfig) -> None:
        super().__init__()
        self.image_size, self.width = config.image_size, config.channels[-1]
        side = config.image_size // 2 ** len(config.channels)
        self.grid = (side, side)
        self.stem = nn.Sequential(
            *[
                layer
                for width_in, width_out in zip([3, *config.channels], config.channels, strict=False)
                for layer in _convolution(width_in, width_out)
            ]
        )
        self.position = nn.Parameter(torch.randn(side * side, self.width) * 0.02)
        block = BlockConfig(
            width=self.width,
            # Without blocks there are no heads for the width to be divided among.
            num_heads=config.num_heads if config.num_layers else 1,
            hidden_width=config.hidden_width,
            norm_eps=config.norm_eps,
        )
        self.blocks = make_blocks(block, config.num_layers)
        self.norm = nn.LayerNorm(self.width, eps=config.norm_eps)

    def embed(self, inputs: Tensor) -> Tensor:
        """What the first block reads ``[N, T, D]`` of images ``[N, 3, side, side]``, row by row of the grid."""
        x = self.stem(inputs.contiguous(memory_format=torch.channels_last))
        return x.flatten(2).transpose(1, 2) + self.position


def _convolution(width_in: int, width_out: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width_out), nn.ReLU()
