"""Tokens to rows sorted by expert, and the experts' rows back to tokens."""

# Shape suffixes: T tokens, E experts, A pairs of a token and an expert, D width.

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rebus.models.moe.routing import Routing


@dataclass(frozen=True, eq=False, kw_only=True)
class Dispatch:
    """Where the pairs of a routing stand once they are sorted by expert; row ``a`` below is a pair in that order."""

    # int64 [A]: the token that row a is a copy of.
    tokens_A: Tensor
    # [A]: the weight of row a, part of the graph.
    weights_A: Tensor
    # int32 [E]: where each expert's rows end.
    ends_E: Tensor
    # int64 [A]: the rows of token 0, then those of token 1, ...
    rows_A: Tensor
    # int64 [T]: where each token's part of ``rows`` starts.
    starts_T: Tensor

    def with_weights(self, weights_A: Tensor) -> Dispatch:
        """The same with other weights."""
        return dataclasses.replace(self, weights_A=weights_A)


def dispatch(routing: Routing) -> Dispatch:
    """Sorts the pairs that fitted by expert; nothing waits for the device."""
    routing = routing.kept()
    device = routing.tokens_A.device
    experts_A, order_A = torch.sort(routing.experts_A, stable=True)
    rows_A = torch.empty_like(order_A)
    rows_A[order_A] = torch.arange(len(order_A), device=device)
    experts_E = torch.arange(routing.num_experts, device=device)
    return Dispatch(
        tokens_A=routing.tokens_A[order_A],
        weights_A=routing.weights_A[order_A],
        ends_E=torch.searchsorted(experts_A, experts_E, right=True, out_int32=True),
        rows_A=rows_A,
        starts_T=torch.searchsorted(routing.tokens_A, torch.arange(routing.num_tokens, device=device)),
    )


def spread(x_TD: Tensor, plan: Dispatch) -> Tensor:
    """The tokens' copies ``[A, D]``, sorted by expert."""
    return _Spread.apply(x_TD, plan)  # pyright: ignore[reportReturnType]


def gather(rows_AD: Tensor, plan: Dispatch) -> Tensor:
    """Sums of each token's rows ``[T, D]``; zero for a token without any."""
    return _Gather.apply(rows_AD, plan)  # pyright: ignore[reportReturnType]


def sum_rows(rows_AD: Tensor, plan: Dispatch) -> Tensor:
    """What ``gather`` computes, outside the graph.

    A bag of embeddings is a sum of rows: no copy of the rows in the tokens' order is made, which index_add or a gather
    and a sum would need, and the order of the summands is fixed, which atomic additions on a GPU would not keep.
    """
    return F.embedding_bag(plan.rows_A, rows_AD, plan.starts_T, mode="sum")


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, plan: Dispatch) -> Tensor:
        ctx.plan = plan
        return x_TD.index_select(0, plan.tokens_A)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        return sum_rows(grads[0].contiguous(), ctx.plan), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_AD: Tensor, plan: Dispatch) -> Tensor:
        ctx.plan = plan
        return sum_rows(rows_AD, plan)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.plan.tokens_A), None
