"""Pixel shuffle (space to depth): a square of neighbouring tokens becomes one wide token, then a projection."""

# Shape suffixes: N images, T image tokens, D width, H rows, W columns.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from rebus.models.connectors.base import to_map
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class PixelShuffleConfig:
    """Sizes of the connector."""

    # Side of the square of tokens that become one; it must divide both sides of the encoder's grid.
    merge_side: int = 2
    # ``mlp``: layer norm, linear, GELU, linear (InternVL 2.5); ``linear``: one layer without bias (Idefics3).
    projection: Literal["mlp", "linear"] = "mlp"

    def __post_init__(self) -> None:
        if self.merge_side < 1:
            raise ValueError(f"merge_side={self.merge_side} must be at least 1")


@register("connector", "pixel-shuffle", config=PixelShuffleConfig, paper="internvl25")
class PixelShuffleConnector(nn.Module):
    """Fewer, wider tokens without losing a value, each projected by itself."""

    def __init__(self, config: PixelShuffleConfig, *, width_in: int, width_out: int, grid: tuple[int, int]) -> None:
        super().__init__()
        side = config.merge_side
        if grid[0] % side or grid[1] % side:
            raise ValueError(f"merge_side={side} does not divide the encoder's grid {grid}")
        self._grid_in, self._merge_side = grid, side
        self.grid = (grid[0] // side, grid[1] // side)
        self.num_tokens = self.grid[0] * self.grid[1]
        merged = width_in * side**2
        self.proj = (
            nn.Linear(merged, width_out, bias=False)
            if config.projection == "linear"
            else nn.Sequential(
                nn.LayerNorm(merged), nn.Linear(merged, width_out), nn.GELU(), nn.Linear(width_out, width_out)
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[N, T, width_in]`` to ``[N, T / merge_side ** 2, width_out]``."""
        return self.proj(pixel_shuffle(features, self._grid_in, self._merge_side))


def pixel_shuffle(features: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Squares of ``side`` x ``side`` tokens ``[N, T, D]`` as one token each, ``[N, T / side ** 2, side ** 2 * D]``.

    A square's tokens follow each other row by row, each with all its channels. That is not ``nn.PixelUnshuffle``'s
    order, which keeps a channel's places together.
    """
    squares = to_map(features, grid).unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [N, D, H/s, s, W/s, s]
    return squares.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
