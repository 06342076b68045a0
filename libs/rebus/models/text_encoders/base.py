"""What a dual encoder asks of its text side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# One text as the encoder reads it, int64 [tokens].
TokenIds: TypeAlias = NDArray[np.int64]


class TextEncoder(Protocol):
    """A module of kind ``text-encoder``, built by its config alone."""

    # Features of one text.
    width: int

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """One array a text, never empty; depends on the config and not on the weights. Thread-safe."""
        ...

    def __call__(self, tokens: Sequence[TokenIds]) -> Tensor:
        """Features ``[B, width]`` of B tokenized texts."""
        ...
