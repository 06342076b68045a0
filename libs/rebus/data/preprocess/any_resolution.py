"""An image as LLaVA-NeXT's tiles: an overview of whatever shape on a tile, then tiles of the image at its own shape."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rebus.data.preprocess.image import ImageProcessor
from rebus.data.preprocess.resize import resized
from rebus.data.preprocess.splitters import Grid


def cut(processor: ImageProcessor, pixels: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """uint8 ``[h, w, 3]`` to an overview and the tiles of ``grid`` row by row, ``[1 + tiles, S, S, 3]``.

    The image is scaled into the grid, its aspect ratio kept, and centred on black; sizes are rounded as in the
    published code. ``processor`` makes the overview; its config says how large a tile is and how pixels are resampled.
    """
    side = processor.config.image_size
    canvas = _canvas(pixels, grid.rows * side, grid.columns * side, processor)
    rows = canvas.reshape(grid.rows, side, grid.columns, side, 3)
    tiles = rows.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
    return np.concatenate([processor.resize(pixels)[None], tiles])


def _canvas(pixels: NDArray[np.uint8], height: int, width: int, processor: ImageProcessor) -> NDArray[np.uint8]:
    by_height, by_width = height / pixels.shape[0], width / pixels.shape[1]
    if by_width < by_height:
        h, w = min(math.ceil(pixels.shape[0] * by_width), height), width
    else:
        h, w = height, min(math.ceil(pixels.shape[1] * by_height), width)
    top, left = (height - h) // 2, (width - w) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + h, left : left + w] = resized(pixels, h, w, processor.config.resample)
    return canvas
