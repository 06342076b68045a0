"""Where a picture of one size goes on a canvas of another, and putting it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rebus.data.images import Color

# Onto a canvas of a given size: ``squash`` ignores the aspect ratio, ``pad`` keeps it and centres the picture,
# ``pad-end`` keeps it and starts at the upper left, so that a place on the canvas is always the same distance from the
# picture's corner, ``crop`` keeps it and takes the centre.
CanvasMode = Literal["squash", "pad", "pad-end", "crop"]
# To a size of the picture's own: that of its shorter or its longer side is given; ``within``: bounds of both are.
SideMode = Literal["shortest", "longest", "within"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
MAX_ASPECT = 8.0


@dataclass(frozen=True)
class Area:
    """A rectangle of pixels: rows ``top .. bottom - 1``, columns ``left .. right - 1``."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)``, as Pillow writes it."""
        return self.right - self.left, self.bottom - self.top

    def within(self, frame: Area) -> Area:
        """The part inside ``frame``, counted from its corner; empty where they do not meet."""
        top, bottom = (min(max(row, frame.top), frame.bottom) - frame.top for row in (self.top, self.bottom))
        left, right = (min(max(column, frame.left), frame.right) - frame.left for column in (self.left, self.right))
        return Area(top, left, bottom, right)


def side_size(mode: SideMode, height: int, width: int, side: int) -> tuple[int, int]:
    """``(height, width)`` of a picture whose shorter or longer side becomes ``side``, its aspect ratio kept.

    A picture of more than ``MAX_ASPECT`` to 1 is squashed to that, so that no side exceeds ``side * MAX_ASPECT``.
    """
    long, short = max(height, width), min(height, width)
    aspect = min(long / short, MAX_ASPECT)
    small, large = (side, round(side * aspect)) if mode == "shortest" else (max(1, round(side / aspect)), side)
    return (large, small) if height > width else (small, large)


def within_size(height: int, width: int, *, smallest: int, largest: int) -> tuple[int, int]:
    """``(height, width)`` of a picture whose longer side is brought down to ``largest``, its aspect ratio kept.

    Then a side shorter than ``smallest`` is stretched to it. Rounded as in Idefics2 (arXiv 2405.02246, section 4).
    """
    aspect = width / height
    if max(height, width) > largest:
        height, width = (int(largest / aspect), largest) if width >= height else (largest, int(largest * aspect))
    return max(height, smallest), max(width, smallest)


def fit(
    pixels: NDArray[np.uint8], height: int, width: int, *, mode: CanvasMode, resample: Resample, background: Color
) -> tuple[NDArray[np.uint8], Area]:
    """uint8 ``[h, w, 3]`` onto a canvas ``[height, width, 3]``, and the area of it that the picture fills."""
    whole = Area(0, 0, height, width)
    if pixels.shape == (height, width, 3):
        return pixels, whole
    image = Image.fromarray(pixels)
    if mode == "squash":
        return np.array(image.resize((width, height), FILTERS[resample])), whole
    if mode == "crop":
        # The cut comes first, so that a very long picture never becomes a large intermediate.
        cut = image.crop(_centre_of(image.size, width, height))
        return np.array(cut.resize((width, height), FILTERS[resample])), whole
    area = _padded_area(image.size, width, height, centred=mode == "pad")
    canvas = Image.new("RGB", (width, height), background)
    canvas.paste(image.resize(area.size, FILTERS[resample]), (area.left, area.top))
    return np.array(canvas), area


def patch_mask(area: Area, height: int, width: int, patch_size: int) -> NDArray[np.bool_]:
    """bool ``[height / p, width / p]``: the patches of a canvas that hold some of the picture in ``area``."""
    if height % patch_size or width % patch_size:
        raise ValueError(f"patches of {patch_size} pixels do not divide {height}x{width}")
    tops, lefts = np.arange(0, height, patch_size), np.arange(0, width, patch_size)
    rows = (tops < area.bottom) & (tops + patch_size > area.top)
    columns = (lefts < area.right) & (lefts + patch_size > area.left)
    return rows[:, None] & columns


def _padded_area(size: tuple[int, int], width: int, height: int, *, centred: bool) -> Area:
    ratio = min(width / size[0], height / size[1])
    w, h = (max(1, round(side * ratio)) for side in size)
    left, top = ((width - w) // 2, (height - h) // 2) if centred else (0, 0)
    return Area(top, left, top + h, left + w)


def _centre_of(size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """Pillow's box of the largest centred part with the aspect ratio of ``width`` x ``height``."""
    ratio = min(size[0] / width, size[1] / height)
    w, h = (min(have, max(1, round(want * ratio))) for have, want in zip(size, (width, height), strict=True))
    left, top = (size[0] - w) // 2, (size[1] - h) // 2
    return left, top, left + w, top + h
