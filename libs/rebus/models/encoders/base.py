"""What an image encoder may offer beyond its forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Pretrained(Protocol):
    """An encoder with published weights."""

    def load_pretrained(self) -> None:
        """Replaces the weights by the published ones."""
        ...


@runtime_checkable
class ReadsAnyShape(Protocol):
    """An encoder of images of many shapes."""

    def forward_packed(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Features ``[T_i, width]`` of images ``[3, H_i, W_i]``, at least one, each what ``forward`` gives for it.

        FSDP gathers weights for ``forward`` only, unless ``register_fsdp_forward_method`` names this method too.
        """
        ...


@runtime_checkable
class GivesLayers(Protocol):
    """An encoder that gives what its blocks hold, not only what its last one does.

    Layers are numbered as transformers' hidden states: 0 is what the first block reads, k what block k gives, and
    negative ones count from the end (``layered.layer_number``).
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
