"""The connector of LLaVA-NeXT: an MLP, and the tokens of an image's tiles put together, of any number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebus.data.preprocess.splitters import AnyResolutionConfig, AnyResolutionSplitter
from rebus.models.connectors.mlp import MlpConfig, MlpConnector
from rebus.models.tile_layout import count_tokens, join_tiles
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class TiledMlpConfig(MlpConfig, AnyResolutionConfig):
    """Sizes of the MLP, and the grids of tiles that images are cut into."""

    def __post_init__(self) -> None:
        MlpConfig.__post_init__(self)
        AnyResolutionConfig.__post_init__(self)


@register("connector", "tiled-mlp", config=TiledMlpConfig)
class TiledMlp(MlpConnector):
    """As ``mlp`` for a tile; ``join`` makes an image's tokens of its overview's and its tiles'."""

    def __init__(self, config: TiledMlpConfig, *, width_in: int, width_out: int, grid: tuple[int, int]) -> None:
        super().__init__(config, width_in=width_in, width_out=width_out, grid=grid)
        self._grid = grid
        self._splitter = AnyResolutionSplitter(config)
        # Stands at the end of each row of an image's tokens.
        self.newline = nn.Parameter(torch.randn(width_out) * width_out**-0.5)

    def join(self, tiles: Tensor, size: tuple[int, int], *, side: int) -> Tensor:
        """Tokens ``[count, width_out]`` of an image of ``size`` (height, width), from ``[1 + tiles, T, width_out]``.

        Tiles are of ``side`` pixels. Raises ``ValueError`` where they are not as many as the size says.
        """
        return join_tiles(tiles, self.newline, grid=self.tiles(size, side=side), tile_grid=self._grid, size=size)

    def count(self, size: tuple[int, int], *, side: int) -> int:
        """Tokens of an image of ``size`` (height, width)."""
        return count_tokens(grid=self.tiles(size, side=side), tile_grid=self._grid, size=size)

    def tiles(self, size: tuple[int, int], *, side: int) -> tuple[int, int]:
        """Rows and columns of the tiles of ``side`` pixels that an image of ``size`` (height, width) is cut into."""
        grid = self._splitter(*size, side=side)
        return grid.rows, grid.columns
