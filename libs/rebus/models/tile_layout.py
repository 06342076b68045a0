"""Where the tokens of an image's tiles stand: one map of the whole image, without padding, a newline after each row.

LLaVA-NeXT's layout ("LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024): the overview's tokens come
first. Tiles are those that an image scaled into a grid, its aspect ratio kept and centred, is cut into.
"""

# Shape suffixes: N tiles, T tokens, D width, H rows, W columns.

from __future__ import annotations

import torch
from torch import Tensor

# Products of ratios that are whole numbers may fall just short of them.
_DIGITS = 7


def unpadded(cells: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a map of ``cells`` that an image of ``size`` fills; both are height, width.

    As much is cut at either end, so that of an odd number of empty rows or columns one is left.
    """
    (rows, columns), (height, width) = cells, size
    if width / height > columns / rows:
        empty = (rows - int(round(height * (columns / width), _DIGITS))) // 2
        return slice(empty, rows - empty), slice(0, columns)
    empty = (columns - int(round(width * (rows / height), _DIGITS))) // 2
    return slice(0, rows), slice(empty, columns - empty)


def join_tiles(
    tiles_NTD: Tensor, newline_D: Tensor, *, grid: tuple[int, int], tile_grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Tokens ``[count, D]`` of an image of ``size`` (height, width), from those of its overview and its tiles.

    ``grid`` are the rows and columns of tiles, ``tile_grid`` those of a tile's tokens. Raises ``ValueError`` where
    there are not as many as both say.
    """
    (rows, columns), (height, width) = grid, tile_grid
    expected = (1 + rows * columns, height * width)
    if tiles_NTD.shape[:2] != expected:
        raise ValueError(f"expected {expected[0]} tiles of {expected[1]} tokens, found {list(tiles_NTD.shape[:2])}")
    map_HWD = tiles_NTD[1:].unflatten(1, tile_grid).unflatten(0, grid).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    map_HWD = map_HWD[unpadded((rows * height, columns * width), size)]
    lines_HWD = torch.cat([map_HWD, newline_D.to(map_HWD).expand(len(map_HWD), 1, -1)], dim=1)
    return torch.cat([tiles_NTD[0], lines_HWD.flatten(0, 1)])


def count_tokens(*, grid: tuple[int, int], tile_grid: tuple[int, int], size: tuple[int, int]) -> int:
    """Tokens that ``join_tiles`` gives."""
    rows, columns = unpadded((grid[0] * tile_grid[0], grid[1] * tile_grid[1]), size)
    return tile_grid[0] * tile_grid[1] + (rows.stop - rows.start) * (columns.stop - columns.start + 1)
