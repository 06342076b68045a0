"""What a connector offers, what it may ask of an encoder, and the map that its tokens lie on."""

# Shape suffixes: N images, T tokens, D width, H rows, W columns.

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


class Connector(Protocol):
    """Built with ``width_in``, ``width_out`` and the encoder's ``grid``, called with features ``[N, T, width_in]``."""

    # Decoder embeddings an image.
    num_tokens: int
    # Rows and columns that the tokens lie on, row by row; None where a token has no place in the image.
    grid: tuple[int, int] | None


@runtime_checkable
class ReadsLayers(Protocol):
    """A connector that is called with a list: the features ``[N, T, width_in]`` of each of ``feature_layers``."""

    # Ascending. Numbered as transformers' hidden states: 0 is what the first block reads, k what block k gives.
    feature_layers: Sequence[int]


@runtime_checkable
class GivesLayers(Protocol):
    """An encoder that gives what its blocks hold, not only what its last one does.

    Layers are numbered as ``ReadsLayers`` says, and negative ones from the end (``encoders.layered.layer_number``).
    """

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        ...

    def forward_layers(self, inputs: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Features ``[N, T, width]`` of each of ``layers``, before a final norm.

        FSDP gathers weights for ``forward`` only, unless ``register_fsdp_forward_method`` names this method too.
        """
        ...


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
