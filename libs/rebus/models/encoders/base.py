"""What an encoder may offer beyond its forward pass."""

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
class Layered(Protocol):
    """An encoder whose layers can be read one by one, all on one grid and of one width."""

    def forward_layers(self, inputs: Tensor, layers: Sequence[int], /) -> list[Tensor]:
        """Hidden states ``[N, T, width]`` of each of ``layers``; -2 is the one before the last."""
        ...
