"""The router of DeepSeek-V3 (arXiv 2412.19437): sigmoid scores, balanced by a bias that no gradient moves."""

# Shape suffixes: T tokens, E experts, G groups of experts, K choices a token, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rebus.models.moe.routers.base import Router, check_top_k
from rebus.models.moe.routing import Routing, token_choice
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class SigmoidConfig:
    """Choices a token, what weighs them, and how fast the bias follows the load."""

    top_k: int = 2
    # The chosen weights sum to ``scale``.
    renormalize: bool = True
    scale: float = 1.0
    # What ``update_bias`` adds or takes; 0.001 in the papers.
    bias_update_rate: float = 0.001
    # Experts stand in groups, and a token chooses among those of its best groups only.
    num_groups: int = 1
    groups_per_token: int = 1

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be positive")
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale} must be positive")
        if self.bias_update_rate < 0:
            raise ValueError(f"bias_update_rate={self.bias_update_rate} must not be negative")
        if not 1 <= self.groups_per_token <= self.num_groups:
            raise ValueError(f"groups_per_token={self.groups_per_token} must be in 1..num_groups={self.num_groups}")


@register("router", "sigmoid", config=SigmoidConfig)
class SigmoidRouter(Router):
    """Chooses by score plus bias, weighs by score alone (equation 16), so that balancing bends no gradient."""

    def __init__(self, config: SigmoidConfig, *, width: int, num_experts: int) -> None:
        super().__init__(width=width, num_experts=num_experts)
        _check_groups(config, num_experts)
        self.config = config
        self.e_score_correction_bias = torch.nn.Buffer(torch.zeros(num_experts))

    @property
    def choices_per_token(self) -> float:
        """Experts that a token meets."""
        return self.config.top_k

    def forward(self, x_TD: Tensor) -> Routing:
        """Routes the tokens ``[T, D]``."""
        logits_TE = self.logits(x_TD)
        sigmoid_TE = logits_TE.sigmoid()
        experts_TK = self._in_groups(sigmoid_TE + self.e_score_correction_bias).topk(self.config.top_k, dim=-1).indices
        weights_TK = sigmoid_TE.gather(1, experts_TK)
        if self.config.renormalize:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
        scores_TE = sigmoid_TE / sigmoid_TE.sum(dim=-1, keepdim=True)
        return token_choice(logits_TE, scores_TE, experts_TK, weights_TK * self.config.scale)

    def _in_groups(self, choice_TE: Tensor) -> Tensor:
        """Minus infinity outside a token's best groups; a group is as good as its two best experts together."""
        if self.config.num_groups == 1:
            return choice_TE
        grouped_TGE = choice_TE.unflatten(1, (self.config.num_groups, -1))
        groups_TG = grouped_TGE.topk(2, dim=-1).values.sum(dim=-1)
        best = groups_TG.topk(self.config.groups_per_token, dim=-1).indices
        outside_TG = torch.ones_like(groups_TG, dtype=torch.bool).scatter(1, best, False)
        return grouped_TGE.masked_fill(outside_TG[..., None], -torch.inf).flatten(1)

    @torch.no_grad()
    def update_bias(self, counts_E: Tensor) -> None:
        """Lifts the bias of experts with less than the mean load ``[E]`` and lowers the others'; once a step.

        "Auxiliary-Loss-Free Load Balancing Strategy" (arXiv 2408.15664), algorithm 1.
        """
        load_E = counts_E.to(self.e_score_correction_bias.dtype)
        self.e_score_correction_bias += self.config.bias_update_rate * torch.sign(load_E.mean() - load_E)


def _check_groups(config: SigmoidConfig, num_experts: int) -> None:
    check_top_k(config.top_k, num_experts)
    if num_experts % config.num_groups or (config.num_groups > 1 and num_experts < 2 * config.num_groups):
        raise ValueError(
            f"num_experts={num_experts} does not fill num_groups={config.num_groups} with two or more each"
        )
    reachable = num_experts // config.num_groups * config.groups_per_token
    if config.top_k > reachable:
        raise ValueError(f"top_k={config.top_k} is more than the {reachable} experts of groups_per_token groups")
