"""Losses that keep the experts in use and the router's logits small; each reads a ``Routing`` and gives a scalar."""

# Shape suffixes: T tokens, E experts, A pairs of a token and an expert.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rebus.models.moe.routing import Routing


def load_balance_loss(routing: Routing) -> Tensor:
    """``E * sum_e f_e P_e`` (Switch, equations 4 to 6): f the tokens an expert was chosen for, P its mean score.

    Where loads and scores are even it is the number of choices a token has: 1 for Switch, k for top-k, as in OLMoE and
    in transformers. Only P has a gradient.
    """
    share_E = routing.counts() / routing.num_tokens
    return routing.num_experts * (share_E * routing.scores_TE.mean(dim=0)).sum()


def router_z_loss(routing: Routing) -> Tensor:
    """Mean square of the logits' log-sum-exp (ST-MoE, arXiv 2202.08906, equation 5)."""
    return routing.logits_TE.logsumexp(dim=-1).square().mean()


def importance_loss(routing: Routing) -> Tensor:
    """Squared coefficient of variation of the experts' summed scores (V-MoE, appendix A.1)."""
    return squared_variation(routing.scores_TE.sum(dim=0))


def gate_importance_loss(routing: Routing) -> Tensor:
    """The same of the weights of the chosen experts only (Shazeer et al. 2017, equation 6)."""
    sums_E = routing.weights_A.new_zeros(routing.num_experts)
    return squared_variation(sums_E.index_add(0, routing.experts_A, routing.weights_A))


def load_loss(routing: Routing) -> Tensor:
    """Squared coefficient of variation of the experts' expected loads (Shazeer, equation 11; V-MoE, appendix A.2).

    Raises ``ValueError`` for a router that adds no noise, or outside training: the load has no gradient there.
    """
    if routing.load_TE is None:
        raise ValueError("the load loss needs a noisy router in training mode; this routing has no load")
    return squared_variation(routing.load_TE.sum(dim=0))


def squared_variation(values_E: Tensor) -> Tensor:
    """Variance over squared mean, zero exactly where all values are equal."""
    return values_E.var(correction=0) / values_E.mean().square()


@dataclass(frozen=True, kw_only=True)
class AuxiliaryLossConfig:
    """Weights of the losses; 0 leaves one out. The first two are MM1's."""

    load_balance: float = 0.01
    router_z: float = 0.001
    importance: float = 0.0
    gate_importance: float = 0.0
    load: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) >= 0:
                raise ValueError(f"{item.name}={getattr(self, item.name)} must not be negative")


LOSSES: Mapping[str, Callable[[Routing], Tensor]] = {
    "load_balance": load_balance_loss,
    "router_z": router_z_loss,
    "importance": importance_loss,
    "gate_importance": gate_importance_loss,
    "load": load_loss,
}


def auxiliary_loss(routings: Iterable[Routing], config: AuxiliaryLossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum to add to a model's loss, and its terms by name, unweighted and detached, for the log.

    Each term is a mean over the layers. Without routings (a model without experts) the sum is zero.
    """
    layers = list(routings)
    weights = {name: getattr(config, name) for name in LOSSES if getattr(config, name)}
    if not layers:
        return torch.zeros(()), {}
    terms = {name: torch.stack([LOSSES[name](routing) for routing in layers]).mean() for name in weights}
    zero = layers[0].logits_TE.new_zeros(())
    return sum((weights[name] * term for name, term in terms.items()), start=zero), {
        name: term.detach() for name, term in terms.items()
    }
