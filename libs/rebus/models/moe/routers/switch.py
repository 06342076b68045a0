"""The router of Switch Transformers: one expert a token, inputs jittered in training."""

# Shape suffixes: T tokens, E experts, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rebus.models.moe.routers.base import Router, noise_source
from rebus.models.moe.routing import Routing, token_choice
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class SwitchConfig:
    """How inputs are jittered."""

    # In training, what the router reads is multiplied with numbers drawn from [1 - jitter, 1 + jitter].
    jitter: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter={self.jitter} must be in [0, 1)")


@register("router", "switch", config=SwitchConfig, paper="switch")
class SwitchRouter(Router):
    """The best expert alone, weighted with its probability so that the router learns (equations 1 and 2)."""

    def __init__(self, config: SwitchConfig, *, width: int, num_experts: int) -> None:
        super().__init__(width=width, num_experts=num_experts)
        self.config = config

    @property
    def choices_per_token(self) -> float:
        """Experts that a token meets."""
        return 1

    def forward(self, x_TD: Tensor) -> Routing:
        """Routes the tokens ``[T, D]``."""
        logits_TE = self.logits(self._jittered(x_TD) if self.training else x_TD)
        scores_TE = logits_TE.softmax(dim=-1)
        weights_T1, experts_T1 = scores_TE.max(dim=-1, keepdim=True)
        return token_choice(logits_TE, scores_TE, experts_T1, weights_T1)

    def _jittered(self, x_TD: Tensor) -> Tensor:
        if not self.config.jitter:
            return x_TD
        factors_TD = torch.empty(x_TD.shape, dtype=torch.float32, device=x_TD.device)
        factors_TD.uniform_(
            1 - self.config.jitter, 1 + self.config.jitter, generator=noise_source(x_TD, self.config.seed)
        )
        return x_TD * factors_TD
