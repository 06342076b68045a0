"""The experts one after another, each on its own segment of rows: the fastest way on CPUs.

Against grouped products of all experts at once, intermediate results stay in the cache, nothing is copied into the
experts' order beforehand, and the backward pass writes every gradient where it belongs.
"""

# Shape suffixes: T tokens, E experts, A rows sorted by expert, B rows of a block, C rows of one expert, D width,
# F hidden, H = F or 2F.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rebus.models.moe import huge_pages
from rebus.models.moe.activations import Activation
from rebus.models.moe.dispatch import Dispatch, sum_rows

# Numbers in a block's rows [B, D + H]: 4 MiB of float32. Smaller blocks cost calls, larger ones leave the cache.
_BLOCK_NUMBERS = 1 << 20


def segments_forward(x_TD: Tensor, up_EHD: Tensor, down_EDF: Tensor, plan: Dispatch, activation: Activation) -> Tensor:
    """Sum of each token's experts, weighted, ``[T, D]``."""
    return _Segments.apply(x_TD, up_EHD, down_EDF, plan.weights_A, plan, activation)  # pyright: ignore[reportReturnType]


class _Block(NamedTuple):
    """Experts whose rows are gathered and activated together, so that small experts cost few calls."""

    rows: slice
    experts: list[int]
    # Rows of each.
    sizes: list[int]


def _blocks(ends: Sequence[int], row_numbers: int) -> Iterator[_Block]:
    """All experts that have rows, in blocks of at least one expert."""
    start, experts, sizes = 0, list[int](), list[int]()
    for expert, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if experts and (end - start) * row_numbers > _BLOCK_NUMBERS:
            yield _Block(slice(start, begin), experts, sizes)
            start, experts, sizes = begin, [], []
        if end > begin:
            experts.append(expert)
            sizes.append(end - begin)
    if experts:
        yield _Block(slice(start, ends[-1]), experts, sizes)


def _multiply(left: Iterable[Tensor], right: Iterable[Tensor], out: Iterable[Tensor]) -> None:
    """Matrix products written to ``out``, one an expert."""
    for a, b, c in zip(left, right, out, strict=True):
        torch.mm(a, b, out=c)


class _Segments(torch.autograd.Function):
    """Keeps the tokens and what the activations read; the copies of tokens and the activations are made again."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        up_EHD: Tensor,
        down_EDF: Tensor,
        weights_A: Tensor,
        plan: Dispatch,
        activation: Activation,
    ) -> Tensor:
        ends = plan.ends_E.tolist()
        (_, H, D), F = up_EHD.shape, down_EDF.shape[2]
        h_AH = huge_pages.empty((len(plan.tokens_A), H), x_TD)
        out_AD = huge_pages.empty((len(plan.tokens_A), D), x_TD)
        ups, downs = up_EHD.mT.unbind(), down_EDF.mT.unbind()
        for at, experts, sizes in _blocks(ends, H + D):
            x_BD, h_BH = x_TD.index_select(0, plan.tokens_A[at]), h_AH[at]
            _multiply(x_BD.split(sizes), (ups[e] for e in experts), h_BH.split(sizes))
            act_BF = x_TD.new_empty(len(h_BH), F)
            activation.forward(h_BH, act_BF)
            act_BF.mul_(weights_A[at, None])
            _multiply(act_BF.split(sizes), (downs[e] for e in experts), out_AD[at].split(sizes))
        ctx.save_for_backward(x_TD, up_EHD, down_EDF, weights_A, h_AH)
        ctx.plan, ctx.activation, ctx.ends = plan, activation, ends
        return sum_rows(out_AD, plan)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        x_TD, up_EHD, down_EDF, weights_A, h_AH = ctx.saved_tensors
        plan, activation, grad_TD = ctx.plan, ctx.activation, grads[0]
        (_, H, D), F = up_EHD.shape, down_EDF.shape[2]
        grad_up_EHD, grad_down_EDF = _weight_gradients(up_EHD, down_EDF, ctx.ends)
        grad_weights_A = torch.empty_like(weights_A)
        grad_x_AD = huge_pages.empty((len(plan.tokens_A), D), x_TD)
        ups, downs, grad_ups, grad_downs = (w.unbind() for w in (up_EHD, down_EDF, grad_up_EHD, grad_down_EDF))
        for at, experts, sizes in _blocks(ctx.ends, H + D):
            tokens_B, h_BH, weights_B1 = plan.tokens_A[at], h_AH[at], weights_A[at, None]
            grad_BD, act_BF, grad_act_BF = grad_TD.index_select(0, tokens_B), *_pair(h_BH, F)
            _multiply(grad_BD.split(sizes), (downs[e] for e in experts), grad_act_BF.split(sizes))
            grad_h_BH = torch.empty_like(h_BH)
            activation.recompute(h_BH, act_BF, grad_h_BH)
            torch.sum(grad_act_BF * act_BF, dim=-1, out=grad_weights_A[at])
            act_BF.mul_(weights_B1)
            _multiply(grad_BD.T.split(sizes, 1), act_BF.split(sizes), (grad_downs[e] for e in experts))
            x_BD = x_TD.index_select(0, tokens_B)
            activation.backward(grad_act_BF.mul_(weights_B1), h_BH, grad_h_BH)
            _multiply(grad_h_BH.T.split(sizes, 1), x_BD.split(sizes), (grad_ups[e] for e in experts))
            _multiply(grad_h_BH.split(sizes), (ups[e] for e in experts), grad_x_AD[at].split(sizes))
        return sum_rows(grad_x_AD, plan), grad_up_EHD, grad_down_EDF, grad_weights_A, None, None


def _pair(h_BH: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return h_BH.new_empty(len(h_BH), width), h_BH.new_empty(len(h_BH), width)


def _weight_gradients(up_EHD: Tensor, down_EDF: Tensor, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Buffers for the gradients of both projections; zero for experts without rows."""
    grad_up_EHD, grad_down_EDF = (huge_pages.empty(tuple(weight.shape), weight) for weight in (up_EHD, down_EDF))
    for expert, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if begin == end:
            grad_up_EHD[expert].zero_()
            grad_down_EDF[expert].zero_()
    return grad_up_EHD, grad_down_EDF
