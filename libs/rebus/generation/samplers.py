"""Samplers: from next-token logits to a token. Pure functions of the logits and of one uniform number a row.

Because the randomness comes in from outside, a request's tokens depend on its seed alone, never on what else is in the
batch. To add a sampler, register a class of kind ``sampler`` with the same ``__call__``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rebus.registry import NoSettings, register


class Sampler(Protocol):
    """Chooses one token a row."""

    def __call__(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Token ids ``[B]`` from logits ``[B, V]`` and numbers ``[B]`` in ``[0, 1)``."""
        ...


@register("sampler", "greedy")
class Greedy:
    """Takes the likeliest token; the lowest id of a tie."""

    def __init__(self, config: NoSettings) -> None: ...

    def __call__(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Token ids ``[B]``; ``uniforms`` is not used."""
        return logits.argmax(dim=-1)


@dataclass(frozen=True, kw_only=True)
class CategoricalConfig:
    """Which tokens may be drawn. Temperature comes first, then ``top_k``, then ``top_p`` of what is left."""

    # Divides the logits; below 1 sharpens, above 1 flattens.
    temperature: float = 1.0
    # Only the k likeliest tokens; 0: all.
    top_k: int = 0
    # Only the fewest likeliest tokens whose mass reaches this (nucleus sampling, arXiv 1904.09751); 0 and 1: all.
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 100:
            raise ValueError(f"temperature={self.temperature} is outside (0, 100]")
        if self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ValueError(f"top_k={self.top_k} must be at least 0 and top_p={self.top_p} within [0, 1]")


@register("sampler", "categorical", config=CategoricalConfig)
class Categorical:
    """Draws from the softmax, cut to the likeliest tokens, by inverting its cumulative distribution."""

    def __init__(self, config: CategoricalConfig) -> None:
        self.config = config

    def probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution drawn from, likeliest first, and the token ids in that order; both ``[B, V]``."""
        scaled = logits.double() / self.config.temperature
        ordered, ids = torch.sort(scaled, dim=-1, descending=True, stable=True)
        if 0 < self.config.top_k < ordered.shape[-1]:
            ordered[:, self.config.top_k :] = -torch.inf
        probabilities = ordered.softmax(dim=-1)
        if 0 < self.config.top_p < 1:
            before = probabilities.cumsum(dim=-1) - probabilities
            probabilities = probabilities.masked_fill(before >= self.config.top_p, 0.0)
            probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        return probabilities, ids

    def __call__(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Token ids ``[B]``: the first, in order of likelihood, whose cumulative mass exceeds the row's number."""
        probabilities, ids = self.probabilities(logits)
        passed = probabilities.cumsum(dim=-1) <= uniforms.double()[:, None]
        last = (probabilities > 0).sum(dim=-1) - 1  # rounding may leave the total a hair below 1
        rank = torch.minimum(passed.sum(dim=-1), last)
        return ids.gather(-1, rank[:, None])[:, 0]
