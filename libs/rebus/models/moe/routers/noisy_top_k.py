"""Top-k of noisy logits: Shazeer et al. 2017 (arXiv 1701.06538) and V-MoE."""

# Shape suffixes: T tokens, E experts, K choices a token, D width.

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.moe.routers.base import Router, check_top_k, noise_source
from rebus.models.moe.routing import Routing, token_choice
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class NoisyTopKConfig:
    """How many experts a token chooses, and the noise."""

    top_k: int = 2
    # The noise's standard deviation: "learned" a token and expert (Shazeer, equation 4), or "fixed" at 1/E (V-MoE).
    noise: Literal["learned", "fixed"] = "learned"
    # True: the chosen weights sum to one (Shazeer, equation 3). False: the softmax is over all experts (V-MoE).
    renormalize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be positive")
        if self.noise not in ("learned", "fixed"):
            raise ValueError(f"noise={self.noise!r} is neither 'learned' nor 'fixed'")


@register("router", "noisy-top-k", config=NoisyTopKConfig, paper="vmoe")
class NoisyTopKRouter(Router):
    """Noise on the logits in training lets experts just below the best be tried, and makes the load differentiable."""

    def __init__(self, config: NoisyTopKConfig, *, width: int, num_experts: int) -> None:
        super().__init__(width=width, num_experts=num_experts)
        check_top_k(config.top_k, num_experts)
        self.config = config
        # Zero, as in the paper's appendix A: the noise starts equal for all experts.
        self.noise_weight = nn.Parameter(torch.zeros(num_experts, width)) if config.noise == "learned" else None

    @property
    def choices_per_token(self) -> float:
        """Experts that a token meets."""
        return self.config.top_k

    def forward(self, x_TD: Tensor) -> Routing:
        """Routes the tokens ``[T, D]``."""
        logits_TE = self.logits(x_TD)
        if not self.training:
            return self._choose(logits_TE, logits_TE)
        std_TE = self._noise_std(x_TD)
        noise_TE = torch.empty_like(logits_TE).normal_(generator=noise_source(x_TD, self.config.seed))
        noisy_TE = logits_TE + noise_TE * std_TE
        load_TE = chance_of_choice(logits_TE, noisy_TE, std_TE, self._thresholds(noisy_TE))
        return dataclasses.replace(self._choose(logits_TE, noisy_TE), load_TE=load_TE)

    def _choose(self, logits_TE: Tensor, noisy_TE: Tensor) -> Routing:
        weights_TK, experts_TK = noisy_TE.softmax(dim=-1).topk(self.config.top_k, dim=-1)
        if self.config.renormalize:
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        return token_choice(logits_TE, logits_TE.softmax(dim=-1), experts_TK, weights_TK)

    def _noise_std(self, x_TD: Tensor) -> Tensor:
        """``[T, E]``, or a number for all."""
        if self.noise_weight is None:
            return torch.tensor(1 / self.num_experts, device=x_TD.device)
        return F.softplus(self.logits(x_TD, self.noise_weight))

    def _thresholds(self, noisy_TE: Tensor) -> Tensor:
        """What an expert's noisy logit must exceed to be chosen, ``[T, E]``.

        Shazeer (equation 8): the k-th best of the other experts. V-MoE (appendix A.2): the k-th best of all.
        """
        top_k = self.config.top_k
        if self.config.noise == "fixed":
            return noisy_TE.topk(top_k, dim=-1).values[:, -1:].expand_as(noisy_TE)
        best = F.pad(noisy_TE, (0, 1), value=-torch.inf).topk(top_k + 1, dim=-1).values
        chosen_TE = noisy_TE >= best[:, top_k - 1 : top_k]
        return torch.where(chosen_TE, best[:, top_k:], best[:, top_k - 1 : top_k])


def chance_of_choice(logits_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, thresholds_TE: Tensor) -> Tensor:
    """Chance ``[T, E]`` that an expert's noise, drawn anew, lifts it over its threshold (Shazeer, equation 9)."""
    # An infinite threshold (every expert is chosen) has no gradient, but its derivative would be 0 times infinity.
    always_TE = torch.isneginf(thresholds_TE)
    margin_TE = (logits_TE - torch.where(always_TE, noisy_TE.detach(), thresholds_TE)) / std_TE
    return torch.where(always_TE, 1.0, torch.special.ndtr(margin_TE))
