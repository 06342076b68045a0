"""Where a patch stands: learned tables at other sizes, fractions in buckets, sines and cosines."""

# Shape suffixes: T tokens, D width.

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]
# Sines and cosines run from one radian a step to one in so many steps.
_LONGEST = 10_000.0
# Keeps the last patch of an axis below 1, where no bucket lies.
_BELOW_ONE = 1.0 - 1e-6


def interpolate_positions(
    position_TD: Tensor, grid: tuple[int, int], *, mode: Interpolation = "bicubic", antialias: bool = False
) -> Tensor:
    """Positions ``[T, D]`` learned on a square grid, resized to ``grid``: ``[rows * columns, D]``.

    On the grid they were learned on they are returned as they are. The resizing is in float32, as in DINOv2: bicubic
    weights in half precision shift the positions.
    """
    side = math.isqrt(len(position_TD))
    if grid == (side, side):
        return position_TD
    image_1DHW = position_TD.T.unflatten(1, (side, side))[None].float()
    resized_1DHW = F.interpolate(image_1DHW, size=grid, mode=mode, align_corners=False, antialias=antialias)
    return resized_1DHW[0].flatten(1).T.to(position_TD.dtype)


def bucketed_positions(grid: tuple[int, int], side: int, device: torch.device | None = None) -> Tensor:
    """For each patch of ``grid``, int64 ``[rows * columns]``, the cell of a ``side`` x ``side`` grid it falls into.

    A patch's place is a fraction of its own image's height and width (NaViT, arXiv 2307.06304), so any aspect ratio
    uses the whole table. Rounded as in Idefics2 (arXiv 2405.02246), whose weights were trained with these roundings.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side, device=device)
    rows, columns = (_buckets(count, boundaries) for count in grid)
    return (rows[:, None] * side + columns).flatten()


def _buckets(count: int, boundaries: Tensor) -> Tensor:
    step = 1.0 / torch.tensor(count, device=boundaries.device)
    fractions = torch.arange(count, device=boundaries.device, dtype=torch.float32) * step
    return torch.bucketize(fractions.clamp(max=_BELOW_ONE), boundaries, right=True)


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's positions ``[length, width]``, float32: sines, then cosines, of geometrically longer waves."""
    if width < 4 or width % 2:
        raise ValueError(f"width={width} must be even and at least 4 for sinusoidal positions")
    rates = torch.exp(-math.log(_LONGEST) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_grid(grid: tuple[int, int], width: int) -> Tensor:
    """AIM's and MAE's positions ``[rows * columns, width]``, float32: one half tells the column, the other the row."""
    if width % 4:
        raise ValueError(f"width={width} must be divisible by 4 for two-dimensional sinusoidal positions")
    rates = _LONGEST ** -(torch.arange(width // 4) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [places.flatten()[:, None] * rates for places in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
