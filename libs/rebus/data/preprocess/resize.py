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
    if mode == "squash":
        return resized(pixels, height, width, resample), whole
    if mode == "crop":
        # The cut comes first, so that a very long picture never becomes a large intermediate.
        cut = _centre_of(pixels, width, height)
        return resized(pixels[cut.top : cut.bottom, cut.left : cut.right], height, width, resample), whole
    area = _padded_area(pixels, width, height, centred=mode == "pad")
    canvas = np.full((height, width, 3), background, np.uint8)
    inside = resized(pixels, area.bottom - area.top, area.right - area.left, resample)
    canvas[area.top : area.bottom, area.left : area.right] = inside
    return canvas, area


def resized(pixels: NDArray[np.uint8], height: int, width: int, resample: Resample) -> NDArray[np.uint8]:
    """uint8 ``[h, w, 3]`` to ``[height, width, 3]``, with antialiasing where it shrinks.

    Torch's filters are Pillow's at a third of the time; transformers' processors use them too. Photographs that shrink
    differ by one or two levels of 255 in less than a hundredth of the values (where one side grows and the other
    shrinks, in a sixth, by up to five: the passes come in another order). Filters that torch has not are Pillow's.
    """
    if resample not in ("bilinear", "bicubic"):
        return np.array(Image.fromarray(pixels).resize((width, height), FILTERS[resample]))
    # Here, so that what only stores and reads data does not load torch.
    import torch
    from torch.nn.functional import interpolate

    # Torch warns of memory that it could be made to write to.
    shown = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)[None]
    done = interpolate(shown, size=(height, width), mode=resample, antialias=True, align_corners=False)
    return done[0].permute(1, 2, 0).contiguous().numpy()


def patch_mask(area: Area, height: int, width: int, patch_size: int) -> NDArray[np.bool_]:
    """bool ``[height / p, width / p]``: the patches of a canvas that hold some of the picture in ``area``."""
    if height % patch_size or width % patch_size:
        raise ValueError(f"patches of {patch_size} pixels do not divide {height}x{width}")
    tops, lefts = np.arange(0, height, patch_size), np.arange(0, width, patch_size)
    rows = (tops < area.bottom) & (tops + patch_size > area.top)
    columns = (lefts < area.right) & (lefts + patch_size > area.left)
    return rows[:, None] & columns


def _padded_area(pixels: NDArray[np.uint8], width: int, height: int, *, centred: bool) -> Area:
    ratio = min(height / pixels.shape[0], width / pixels.shape[1])
    h, w = (max(1, round(side * ratio)) for side in pixels.shape[:2])
    left, top = ((width - w) // 2, (height - h) // 2) if centred else (0, 0)
    return Area(top, left, top + h, left + w)


def _centre_of(pixels: NDArray[np.uint8], width: int, height: int) -> Area:
    """The largest centred part with the aspect ratio of ``width`` x ``height``."""
    have = pixels.shape[:2]
    ratio = min(have[0] / height, have[1] / width)
    h, w = (min(side, max(1, round(want * ratio))) for side, want in zip(have, (height, width), strict=True))
    top, left = (have[0] - h) // 2, (have[1] - w) // 2
    return Area(top, left, top + h, left + w)
