"""What an image encoder may offer beyond its forward pass."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Pretrained(Protocol):
    """An encoder with published weights."""

    def load_pretrained(self) -> None:
        """Replaces the weights by the published ones."""
        ...
