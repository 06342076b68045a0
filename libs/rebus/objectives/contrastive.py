"""Contrastive losses over a batch of matching pairs: row i of the images belongs to row i of the texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.registry import NoSettings, register


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The input of a contrastive loss."""

    # Unit vectors, [B, D] each.
    images: Tensor
    texts: Tensor
    # Scalars: factor of the cosines, and what the sigmoid loss adds to them.
    scale: Tensor
    bias: Tensor
    # bool [B, B], True where image i and text j are known to be unlike or are the pair i = j. The others, such as two
    # variants of one emoji, are neither positives nor negatives.
    counted: Tensor

    def cosines(self) -> Tensor:
        """``[B, B]``, image i by text j."""
        return self.images @ self.texts.T


@runtime_checkable
class PairObjective(Protocol):
    """A loss of a dual encoder, built by its config alone."""

    def over_pairs(self, pairs: Pairs) -> Tensor:
        """The scalar loss."""
        ...


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Settings of the symmetric InfoNCE loss."""

    # LLaVE's alpha: a negative weighs ``exp(hardness * cosine)``, so that those hard to tell apart teach more. 0: CLIP.
    hardness: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.hardness <= 50:
            raise ValueError(f"hardness={self.hardness} is outside 0..50")


@register("objective", "contrastive", config=ContrastiveConfig, paper="llave")
class Contrastive:
    """Symmetric InfoNCE: each image among the batch's texts, each text among its images (CLIP, arXiv 2103.00020).

    With ``hardness`` negatives are weighted by their own cosine, through which no gradient flows (LLaVE, 2503.04812).
    """

    def __init__(self, config: ContrastiveConfig) -> None:
        self._hardness = config.hardness

    def over_pairs(self, pairs: Pairs) -> Tensor:
        """Mean cross-entropy over both directions, a scalar."""
        cosines = pairs.cosines()
        logits = pairs.scale * cosines
        if self._hardness:
            logits = logits + self._hardness * cosines.detach().clone().fill_diagonal_(0)
        logits = logits.masked_fill(~pairs.counted, -torch.inf)
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@register("objective", "sigmoid-contrastive")
class SigmoidContrastive:
    """SigLIP's loss (arXiv 2303.15343): every pair of the batch by itself is a match or is none."""

    def __init__(self, config: NoSettings) -> None:
        self.config = config

    def over_pairs(self, pairs: Pairs) -> Tensor:
        """Negative log-likelihood of all counted pairs, divided by the batch size, a scalar."""
        logits = pairs.scale * pairs.cosines() + pairs.bias
        signs = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -(F.logsigmoid(signs * logits) * pairs.counted).sum() / len(logits)
