"""The Vision Transformer (arXiv 2010.11929) whose forms CLIP, SigLIP, DINOv2 and AIM are."""

# Shape suffixes: N images, P prefix tokens, T patches, D width.

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.encoders.layered import LayeredEncoder, layer_number
from rebus.models.encoders.patch_packing import packed_attention, patchify
from rebus.models.encoders.positions import interpolate_positions
from rebus.models.encoders.transformer import Activation, BlockConfig, make_blocks

_POSITION_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """Sizes that all forms have; each sets its own defaults."""

    # Side of the square input, in pixels. What is left over of a patch at the right and the bottom is not seen.
    image_size: int = 224
    # Side at which the positions were learned; 0: ``image_size``. They are interpolated from there.
    trained_size: int = 0
    # Side of a square patch, in pixels.
    patch_size: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    # Inner width of the feed-forward parts.
    hidden_width: int = 3072
    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    # Whose hidden states are the features: -1 the last layer's, normed as the form does; -2 LLaVA's choice.
    # Layers after it are kept, for ``pool`` and for export, and get no gradients through the features.
    feature_layer: int = -1

    def __post_init__(self) -> None:
        if not 1 <= self.patch_size <= min(self.image_size, self.position_size):
            raise ValueError(
                f"patch_size={self.patch_size} must be positive and at most image_size={self.image_size} "
                f"and trained_size={self.trained_size}"
            )
        self.block()
        layer_number(self.feature_layer, self.num_layers, field="feature_layer")

    def block(self) -> BlockConfig:
        """Of each layer."""
        return BlockConfig(
            width=self.width,
            num_heads=self.num_heads,
            hidden_width=self.hidden_width,
            norm_eps=self.norm_eps,
            activation=self.activation,
        )

    @property
    def position_size(self) -> int:
        """Side of the images whose positions are learned, in pixels."""
        return self.trained_size or self.image_size

    @property
    def position_side(self) -> int:
        """Side of the grid of learned positions."""
        return self.position_size // self.patch_size


class VisionTransformer(LayeredEncoder):
    """Patches with learned positions, blocks, a final norm; the forms add what stands before the patches."""

    def __init__(
        self,
        config: VisionTransformerConfig,
        *,
        num_prefix_positions: int = 0,
        patch_bias: bool = True,
        antialias: bool = False,
    ) -> None:
        """``num_prefix_positions`` tokens have positions before the patches'; ``antialias`` smooths shrunk ones."""
        super().__init__()
        self.image_size, self.patch_size, self.width = config.image_size, config.patch_size, config.width
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        self.feature_layer = config.feature_layer
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=patch_bias)
        self._num_prefix_positions, self._antialias = num_prefix_positions, antialias
        count = num_prefix_positions + config.position_side**2
        self.position = nn.Parameter(torch.randn(count, config.width) * _POSITION_STD)
        self.blocks = make_blocks(config.block(), config.num_layers)
        self.norm: nn.Module = nn.LayerNorm(config.width, eps=config.norm_eps)

    def embed(self, inputs: Tensor) -> Tensor:
        """What the first block reads ``[N, P + T, D]`` of images ``[N, 3, H, W]`` of any size of a patch or more.

        Raises ``ValueError`` for smaller ones.
        """
        grid = self._grid_of(inputs)
        return self._tokens(self.patch_embed(inputs).flatten(2).transpose(1, 2), grid)

    def forward_packed(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Features ``[T_i, D]`` of images ``[3, H_i, W_i]`` in one sequence, each what ``forward`` gives for it alone.

        ``images`` must not be empty; raises ``ValueError`` for one smaller than a patch.
        """
        grids = [self._grid_of(image) for image in images]
        patches = torch.cat([patchify(image, self.patch_size) for image in images])
        patches_SD = F.linear(patches, self.patch_embed.weight.flatten(1), self.patch_embed.bias)
        split = patches_SD.split([rows * columns for rows, columns in grids])
        tokens = [self._tokens(part[None], grid) for part, grid in zip(split, grids, strict=True)]
        lengths = [part.shape[1] for part in tokens]
        attend = functools.partial(packed_attention, lengths=lengths)
        features = self._features(torch.cat(tokens, dim=1), attend)
        return [self.on_grid(part)[0] for part in features.split(lengths, dim=1)]

    def _tokens(self, patches_NTD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embedded patches with their positions, after the prefix tokens: ``[N, P + T, D]``."""
        patches_NTD = patches_NTD + self._positions(grid)
        prefix_PD = self._prefix()
        if prefix_PD is None:
            return patches_NTD
        return torch.cat([prefix_PD.expand(len(patches_NTD), -1, -1), patches_NTD], dim=1)

    def _prefix(self) -> Tensor | None:
        """Tokens before the patches ``[P, D]``, with their positions."""
        return None

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of patches ``[T, D]``."""
        table_TD = self.position[self._num_prefix_positions :]
        return interpolate_positions(table_TD, grid, antialias=self._antialias)

    def _grid_of(self, pixels: Tensor) -> tuple[int, int]:
        height, width = pixels.shape[-2:]
        if min(height, width) < self.patch_size:
            raise ValueError(f"an image of {height}x{width} pixels is smaller than a patch of {self.patch_size}")
        return height // self.patch_size, width // self.patch_size
