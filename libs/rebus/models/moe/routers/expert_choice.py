"""Expert choice (Zhou et al. 2022, arXiv 2202.09368): each expert takes the tokens that want it most."""

# Shape suffixes: T tokens, E experts, C tokens an expert takes, A pairs, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rebus.models.moe.routers.base import Router
from rebus.models.moe.routing import Routing
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class ExpertChoiceConfig:
    """How many tokens an expert takes."""

    # Experts a token meets on average: each takes T * capacity_factor / E tokens.
    capacity_factor: float = 2.0

    def __post_init__(self) -> None:
        if not self.capacity_factor > 0:
            raise ValueError(f"capacity_factor={self.capacity_factor} must be positive")


@register("router", "expert-choice", config=ExpertChoiceConfig)
class ExpertChoiceRouter(Router):
    """Perfect balance without a loss; whether a token is taken depends on all others of the batch.

    That includes tokens after it: a causal decoder trained so is told a little of what it is to predict, and decoding
    token by token routes differently. Use it in encoders, or knowing this.
    """

    def __init__(self, config: ExpertChoiceConfig, *, width: int, num_experts: int) -> None:
        super().__init__(width=width, num_experts=num_experts)
        self.config = config

    @property
    def choices_per_token(self) -> float:
        """Experts that a token meets."""
        return self.config.capacity_factor

    def forward(self, x_TD: Tensor) -> Routing:
        """Routes the tokens ``[T, D]``."""
        logits_TE = self.logits(x_TD)
        scores_TE = logits_TE.softmax(dim=-1)
        weights_CE, tokens_CE = scores_TE.topk(self._capacity(len(x_TD)), dim=0)
        order_A = torch.argsort(tokens_CE.flatten(), stable=True)
        experts_A = order_A % self.num_experts
        return Routing(
            logits_TE=logits_TE,
            scores_TE=scores_TE,
            tokens_A=tokens_CE.flatten()[order_A],
            experts_A=experts_A,
            # Experts choose, so a token has no order among them.
            ranks_A=torch.zeros_like(experts_A),
            weights_A=weights_CE.flatten()[order_A],
        )

    def _capacity(self, num_tokens: int) -> int:
        share = round(num_tokens * self.config.capacity_factor / self.num_experts)
        return min(num_tokens, max(1, share))
