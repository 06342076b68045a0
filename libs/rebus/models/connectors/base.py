"""What a connector offers, which layers it may read, and the map that its tokens lie on."""

# Shape suffixes: N images, T tokens, D width, H rows, W columns.

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Connector(Protocol):
    """Built with ``width_in``, ``width_out`` and the encoder's ``grid``, called with features ``[N, T, width_in]``."""

    # Decoder embeddings an image.
    num_tokens: int
    # Rows and columns that the tokens lie on, row by row; None where a token has no place in the image.
    grid: tuple[int, int] | None


@runtime_checkable
class ReadsLayers(Protocol):
    """A connector that is called with a list: the features ``[N, T, width_in]`` of each of ``feature_layers``.

    The encoder must be a ``GivesLayers``.
    """

    # Ascending, from 0 on, numbered as by ``encoders.base.GivesLayers``.
    feature_layers: Sequence[int]


@runtime_checkable
class ReadsPadded(Protocol):
    """A connector that gives ``num_tokens`` of any number of features, as images of many shapes have.

    It is called with padded features ``[N, T, width_in]`` and, where some are padding, a bool mask ``[N, T]``, False
    there.
    """

    reads_padded: Literal[True]


@runtime_checkable
class JoinsTiles(Protocol):
    """A connector that makes an image's tokens, of any number, of those of its overview and its tiles."""

    def join(self, tiles: Tensor, size: tuple[int, int], *, side: int) -> Tensor:
        """Tokens ``[count, D]`` of an image of ``size`` (height, width), from ``[1 + tiles, T, D]`` of ``side`` pixels.

        Raises ``ValueError`` where tiles are not as many as the size says.
        """
        ...

    def count(self, size: tuple[int, int], *, side: int) -> int:
        """Tokens of an image of ``size``."""
        ...

    def tiles(self, size: tuple[int, int], *, side: int) -> tuple[int, int]:
        """Rows and columns of the tiles that an image of ``size`` is cut into."""
        ...


def pad(features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Features ``[T_i, D]`` as ``[N, T, D]`` and, where lengths differ, bool ``[N, T]``: False at padding."""
    padded = pad_sequence(list(features), batch_first=True)
    lengths = torch.tensor([len(part) for part in features], device=padded.device)
    if bool((lengths == padded.shape[1]).all()):
        return padded, None
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def to_map(features_NTD: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens ``[N, T, D]``, row by row of ``grid``, as a map ``[N, D, H, W]``."""
    if features_NTD.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"{features_NTD.shape[1]} features an image do not fill a grid of {grid[0]} x {grid[1]}")
    return features_NTD.transpose(1, 2).unflatten(2, grid)


def to_tokens(map_NDHW: Tensor) -> Tensor:
    """A map ``[N, D, H, W]`` as tokens ``[N, H * W, D]``, row by row."""
    return map_NDHW.flatten(2).transpose(1, 2)


def check_side(grid_side: int, grid: tuple[int, int]) -> None:
    """Pooling makes a grid coarser: a side beyond the encoder's would only repeat tokens."""
    if grid_side > min(grid):
        raise ValueError(f"grid_side={grid_side} exceeds the encoder's grid {grid}")
