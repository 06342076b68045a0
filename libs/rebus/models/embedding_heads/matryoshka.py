"""Matryoshka embeddings (arXiv 2205.13147): beginnings of a vector that are embeddings themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def matryoshka(embeddings: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """The first dimensions of ``[..., D]`` as unit vectors ``[..., w]`` of each of ``widths``.

    Each is normalised after it was cut: the beginning of a unit vector is shorter than one.
    """
    if bad := [width for width in widths if not 1 <= width <= embeddings.shape[-1]]:
        raise ValueError(f"widths {bad} are not within 1..{embeddings.shape[-1]}")
    return [F.normalize(embeddings[..., :width], dim=-1) for width in widths]
