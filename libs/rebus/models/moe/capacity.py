"""Which pairs fit where an expert takes a bounded number of tokens, and who comes first."""

# Shape suffixes: T tokens, E experts, A pairs of a token and an expert.

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from rebus.models.moe.routing import Routing

Priority = Literal["order", "score"]


def capacity(num_pairs: int, num_experts: int, factor: float) -> int:
    """Tokens an expert takes: its even share of the pairs times ``factor`` (V-MoE, equation 3), at least one."""
    return max(1, round(num_pairs / num_experts * factor))


def limit(routing: Routing, factor: float, priority: Priority) -> Routing:
    """Marks the pairs that fit, ``kept_A``; a token none of whose pairs fit passes by on the residual stream.

    First choices come before second ones (GShard, algorithm 1). Among equal choices, ``"order"`` serves tokens as they
    stand (GShard, Switch) and ``"score"`` those with the highest score first, so that what is dropped mattered least
    (batch prioritized routing, V-MoE, section 4.1; across a causal row it looks ahead, as expert choice does).
    """
    bound = capacity(len(routing.tokens_A), routing.num_experts, factor)
    return dataclasses.replace(routing, kept_A=_places(routing, priority) < bound)


def _places(routing: Routing, priority: Priority) -> Tensor:
    """Each pair's place in its expert's queue, int64 ``[A]``."""
    # Sorts from the least to the most significant key; each keeps the order of the one before.
    order_A = torch.arange(len(routing.tokens_A), device=routing.tokens_A.device)
    if priority == "score":
        best_T = routing.scores_TE.detach().amax(dim=-1)
        order_A = torch.argsort(best_T[routing.tokens_A], descending=True, stable=True)
    for key_A in (routing.ranks_A, routing.experts_A):
        order_A = order_A[torch.argsort(key_A[order_A], stable=True)]
    starts_E = torch.searchsorted(routing.experts_A[order_A], torch.arange(routing.num_experts, device=order_A.device))
    places_A = torch.empty_like(order_A)
    places_A[order_A] = torch.arange(len(order_A), device=order_A.device) - starts_E[routing.experts_A[order_A]]
    return places_A
