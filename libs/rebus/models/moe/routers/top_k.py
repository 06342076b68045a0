"""Top-k of a softmax: the router of Mixtral and of OLMoE."""

# Shape suffixes: T tokens, E experts, K choices a token, D width.

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rebus.models.moe.routers.base import Router, check_top_k
from rebus.models.moe.routing import Routing, token_choice
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class TopKConfig:
    """How many experts a token chooses, and what weighs them."""

    top_k: int = 2
    # True: the chosen weights sum to one, as if the softmax were taken over the chosen only (Mixtral). False: they are
    # what the softmax over all experts gave them (OLMoE).
    renormalize: bool = True

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be positive")


@register("router", "top-k", config=TopKConfig, paper=("mm1", "olmoe"))
class TopKRouter(Router):
    """Softmax over the experts, then the best k; nothing random."""

    def __init__(self, config: TopKConfig, *, width: int, num_experts: int) -> None:
        super().__init__(width=width, num_experts=num_experts)
        check_top_k(config.top_k, num_experts)
        self.config = config

    @property
    def choices_per_token(self) -> float:
        """Experts that a token meets."""
        return self.config.top_k

    def forward(self, x_TD: Tensor) -> Routing:
        """Routes the tokens ``[T, D]``."""
        logits_TE = self.logits(x_TD)
        scores_TE = logits_TE.softmax(dim=-1)
        weights_TK, experts_TK = scores_TE.topk(self.config.top_k, dim=-1)
        if self.config.renormalize:
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        return token_choice(logits_TE, scores_TE, experts_TK, weights_TK)
