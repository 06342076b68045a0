"""How many tiles an image becomes, and in which grid (kind ``splitter``).

Most splitters only decide the grid; ``media.MediaProcessor`` brings the image onto it as the image's ``resize`` says.
The papers' own: MM1.5 pads, InternVL squashes. One that ``CutsOriginal`` makes images of the image, each of which is
resized by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

from numpy.typing import NDArray

from rebus.registry import NoSettings, register

Overview = Literal["first", "last", "none"]
_MAX_TILES = 64


@dataclass(frozen=True)
class Grid:
    """Tiles of one size in ``rows`` and ``columns``, and where the overview of the whole image stands, if there is one.

    A grid of one tile is an overview itself.
    """

    rows: int
    columns: int
    overview: Overview = "none"

    @property
    def num_tiles(self) -> int:
        """Tiles of the sequence, the overview included."""
        return self.rows * self.columns + (self.overview != "none")


SINGLE = Grid(1, 1)


class Splitter(Protocol):
    """Built as ``splitter(config)``; sizes are in pixels, ``side`` is a tile's."""

    def __call__(self, height: int, width: int, *, side: int, num_images: int = 1) -> Grid: ...


@runtime_checkable
class CutsOriginal(Protocol):
    """A splitter whose pieces are images of their own, of any shape: each is resized as an image is."""

    def cut(self, pixels: NDArray[Any]) -> list[NDArray[Any]]:
        """``[H, W, 3]`` to as many pieces ``[h, w, 3]`` as the grid has tiles.

        Raises ``ValueError`` for too small an image.
        """
        ...


@register("splitter", "single")
class SingleSplitter:
    """Every image is one tile."""

    def __init__(self, config: NoSettings) -> None:
        pass

    def __call__(self, height: int, width: int, *, side: int, num_images: int = 1) -> Grid:
        """One tile, whatever the size."""
        return SINGLE


@dataclass(frozen=True, kw_only=True)
class SubImagesConfig:
    """A fixed grid."""

    # Tiles a side.
    grid: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.grid**2 <= _MAX_TILES:
            raise ValueError(f"grid={self.grid} must give 1 to {_MAX_TILES} tiles")


@register("splitter", "sub-images", config=SubImagesConfig, paper="mm1")
class SubImageSplitter:
    """MM1's overview and four crops at twice the encoder's resolution (arXiv 2403.09611, section 4)."""

    def __init__(self, config: SubImagesConfig) -> None:
        self._grid = Grid(config.grid, config.grid, "first")

    def __call__(self, height: int, width: int, *, side: int, num_images: int = 1) -> Grid:
        """The fixed grid, whatever the size."""
        return self._grid


@dataclass(frozen=True, kw_only=True)
class DynamicConfig:
    """Bounds of the grid: 4 to 9 in training; serving may raise ``max_tiles`` but must not lower ``min_tiles``."""

    min_tiles: int = 4
    max_tiles: int = 9
    # Where a prompt holds as many images, none of them is split.
    off_at_images: int = 3

    def __post_init__(self) -> None:
        _check_tiles(self.min_tiles, self.max_tiles)


@register("splitter", "dynamic", config=DynamicConfig, paper="mm1-5")
class DynamicSplitter:
    """MM1.5's dynamic image splitting: the grid that pads least, else the one that shrinks least.

    The image is scaled, its aspect ratio kept, until it touches the grid's border (arXiv 2409.20566, section 3.3). Of
    the grids into which it fits without shrinking the one with the least padding is taken; if there is none, the one
    that shrinks it least. Ties go to the grid of fewer tiles, then of fewer rows.
    """

    def __init__(self, config: DynamicConfig) -> None:
        self._config = config

    def __call__(self, height: int, width: int, *, side: int, num_images: int = 1) -> Grid:
        """The grid of the image; the overview comes last, and a single tile has none."""
        config = self._config
        if num_images >= config.off_at_images:
            return SINGLE
        rows, columns = _least_loss(height, width, side, config.min_tiles, config.max_tiles)
        return Grid(rows, columns, "none" if rows * columns == 1 else "last")


@dataclass(frozen=True, kw_only=True)
class AspectConfig:
    """Bounds of the grid."""

    min_tiles: int = 1
    max_tiles: int = 12

    def __post_init__(self) -> None:
        _check_tiles(self.min_tiles, self.max_tiles)


@register("splitter", "aspect", config=AspectConfig, paper="internvl25")
class AspectSplitter:
    """InternVL's dynamic tiling: the grid whose aspect ratio is nearest the image's, a thumbnail last.

    Among grids that are equally near, one of more tiles is taken while the image has more than half its pixels
    (arXiv 2412.05271, section 3.1). Ratios are compared as floats, as in the published code: what ties there ties here.
    """

    def __init__(self, config: AspectConfig) -> None:
        self._config = config

    def __call__(self, height: int, width: int, *, side: int, num_images: int = 1) -> Grid:
        """The grid of the image; a single tile has no thumbnail."""
        aspect = width / height
        best, nearest = (1, 1), float("inf")
        for rows, columns in _grids(self._config.min_tiles, self._config.max_tiles):
            distance = abs(aspect - columns / rows)
            enough = height * width > 0.5 * side * side * rows * columns
            if distance < nearest or (distance == nearest and enough):
                best, nearest = (rows, columns), distance
        return Grid(*best, "none" if best == (1, 1) else "last")


@dataclass(frozen=True, kw_only=True)
class AnyResolutionConfig:
    """Grids in question: rows and columns of each; of equally good ones the first is taken."""

    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))

    def __post_init__(self) -> None:
        if not self.grids or not all(min(grid) >= 1 and grid[0] * grid[1] <= _MAX_TILES for grid in self.grids):
            raise ValueError(f"grids={list(self.grids)} must each have 1 to {_MAX_TILES} tiles")


@register("splitter", "any-resolution", config=AnyResolutionConfig, paper="xgen-mm")
class AnyResolutionSplitter:
    """LLaVA-NeXT's choice of a grid: the one that keeps most of the image's pixels, then the one that wastes least.

    Sizes are rounded as in the published code, so that what ties there ties here.
    """

    def __init__(self, config: AnyResolutionConfig) -> None:
        self._grids = config.grids

    def __call__(self, height: int, width: int, *, side: int, num_images: int = 1) -> Grid:
        """The grid of the image; the overview comes first."""

        def worth(grid: tuple[int, int]) -> tuple[int, int]:
            rows, columns = grid
            scale = min(columns * side / width, rows * side / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - rows * columns * side * side

        return Grid(*max(self._grids, key=worth), "first")


@register("splitter", "quarters", paper="idefics2")
class QuartersSplitter:
    """Idefics2's image splitting: the four quarters, row by row, and the whole image (arXiv 2405.02246)."""

    def __init__(self, config: NoSettings) -> None:
        pass

    def __call__(self, height: int, width: int, *, side: int, num_images: int = 1) -> Grid:
        """Two rows and columns, whatever the size; the whole image comes last."""
        return Grid(2, 2, "last")

    def cut(self, pixels: NDArray[Any]) -> list[NDArray[Any]]:
        """The quarters and the whole; of an odd side the second half is longer."""
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        if not height or not width:
            raise ValueError(f"has {pixels.shape[0]}x{pixels.shape[1]} pixels, too few for quarters")
        rows = pixels[:height], pixels[height:]
        return [*(half for row in rows for half in (row[:, :width], row[:, width:])), pixels]


# Splitters that need no squares.
ANY_SHAPE = ("single", "quarters")


def _check_tiles(least: int, most: int) -> None:
    if not 1 <= least <= most <= _MAX_TILES:
        raise ValueError(f"need 1 <= min_tiles={least} <= max_tiles={most} <= {_MAX_TILES}")


@lru_cache(maxsize=32)
def _grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """All ``(rows, columns)`` of ``least`` to ``most`` tiles, by number of tiles, then by columns."""
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    return tuple(sorted((g for g in grids if g[0] * g[1] >= least), key=lambda g: (g[0] * g[1], g[1])))


@lru_cache(maxsize=4096)
def _least_loss(height: int, width: int, side: int, least: int, most: int) -> tuple[int, int]:
    """MM1.5's choice among ``(rows, columns)``, in exact fractions, so that equal grids compare as equal."""

    def cost(grid: tuple[int, int]) -> tuple[bool, Fraction, int, int]:
        rows, columns = grid
        scale = min(Fraction(rows * side, height), Fraction(columns * side, width))
        padding = rows * columns * side * side - scale * scale * height * width
        return scale < 1, -scale if scale < 1 else padding, rows * columns, rows

    return min(_grids(least, most), key=cost)
