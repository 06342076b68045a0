"""Several image encoders as one: their features side by side along the channels, on the first one's grid."""

# Shape suffixes: N images, T tokens, D width, H rows, W columns.

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus import registry
from rebus.models.connectors.base import to_map, to_tokens
from rebus.registry import Spec, register

_MAX_ENCODERS = 8


@dataclass(frozen=True, kw_only=True)
class ConcatenatedConfig:
    """The encoders, the first of which gives the grid."""

    encoders: list[Spec] = registry.component("encoder", ["vit", "conv-vit"])

    def __post_init__(self) -> None:
        if not 1 <= len(self.encoders) <= _MAX_ENCODERS:
            raise ValueError(f"encoders: expected 1 to {_MAX_ENCODERS}, found {len(self.encoders)}")


@register("encoder", "concatenated", config=ConcatenatedConfig)
class ConcatenatedEncoder(nn.Module):
    """Channel concatenation, the fusion that Eagle (arXiv 2408.15998, section 3.3) finds best of the simple ones.

    All encoders read the same normalised pixels, each at its own size: an image comes at the largest of them and is
    made smaller for the others, so none sees less than it could. Features on other grids are interpolated to the
    first's, as in Cambrian-1's baseline (arXiv 2406.16860, section 3). There is no ``forward_layers``: layer k of one
    encoder is no layer k of another, so that connectors which read layers are refused when the model is built.
    """

    def __init__(self, config: ConcatenatedConfig) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            registry.build("encoder", spec, field=f"encoder.encoders[{at}]") for at, spec in enumerate(config.encoders)
        )
        self._sizes = [cast(int, encoder.image_size) for encoder in self.encoders]
        self._grids = [cast(tuple[int, int], encoder.grid) for encoder in self.encoders]
        self.image_size, self.grid = max(self._sizes), self._grids[0]
        self.width = sum(cast(int, encoder.width) for encoder in self.encoders)

    @property
    def num_tokens(self) -> int:
        """Features an image."""
        return self.grid[0] * self.grid[1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Features ``[N, T, D]`` of images ``[N, 3, image_size, image_size]``; D is the sum of all encoders' widths.

        Raises ``ValueError`` for images of another size.
        """
        if pixels.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"images are {list(pixels.shape[2:])}, expected {self.image_size} pixels a side")
        parts = zip(self.encoders, self._sizes, self._grids, strict=True)
        return torch.cat(
            [self._on_grid(encoder(_resized(pixels, (size, size))), grid) for encoder, size, grid in parts], dim=-1
        )

    def _on_grid(self, x_NTD: Tensor, grid: tuple[int, int]) -> Tensor:
        return x_NTD if grid == self.grid else to_tokens(_resized(to_map(x_NTD, grid), self.grid))


def _resized(x_NDHW: Tensor, size: tuple[int, int]) -> Tensor:
    if x_NDHW.shape[2:] == size:
        return x_NDHW
    return F.interpolate(x_NDHW, size=size, mode="bilinear", align_corners=False, antialias=True)
