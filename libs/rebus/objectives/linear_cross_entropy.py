"""Cross-entropy of an output layer whose logits never exist all at once.

The logits of a chunk of tokens are made, turned into their own gradient in place, and multiplied into the gradients of
hidden states and weight before the next chunk's are made. So nothing is computed twice, and what grows with tokens
times vocabulary is bounded by one chunk ("Cut Your Losses in Large-Vocabulary Language Models", arXiv 2411.09009;
gradients in the forward pass as in Liger Kernel, arXiv 2410.10989).
"""

# Shape suffixes: M labelled tokens, C tokens of a chunk, D width, V vocabulary.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_cross_entropy(
    hidden_MD: Tensor, weight_VD: Tensor, labels_M: Tensor, weights_M: Tensor, *, chunk_tokens: int
) -> Tensor:
    """The sum over tokens of ``weights`` times the cross-entropy of ``labels`` under ``hidden @ weight.T``, float32.

    ``labels`` are all counted: choose the labelled positions first. Holds the logits of ``chunk_tokens`` tokens.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1")
    return _LinearCrossEntropy.apply(hidden_MD, weight_VD, labels_M, weights_M, chunk_tokens)  # pyright: ignore[reportReturnType]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, labels_M: Tensor, weights_M: Tensor, chunk_tokens: int
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_MD.device)
        hidden_grad_MD = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(labels_M), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden_CD = hidden_MD[chunk]
            logits_CV = F.linear(hidden_CD, weight_VD).float()
            total += _loss_to_gradient(logits_CV, labels_M[chunk], weights_M[chunk])
            if hidden_grad_MD is not None:
                torch.mm(logits_CV.to(weight_VD.dtype), weight_VD, out=hidden_grad_MD[chunk])
            if weight_grad_VD is not None:
                weight_grad_VD.addmm_(logits_CV.T, hidden_CD.float())
        ctx.save_for_backward(hidden_grad_MD, None if weight_grad_VD is None else weight_grad_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides its parameters' names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_grad_MD, weight_grad_VD = (
            None if saved is None else saved * grad_outputs[0].to(saved.dtype) for saved in ctx.saved_tensors
        )
        return hidden_grad_MD, weight_grad_VD, None, None, None


def _loss_to_gradient(logits_CV: Tensor, labels_C: Tensor, weights_C: Tensor) -> Tensor:
    """The chunk's weighted loss; the logits become their gradient in place, softmax minus one at the label."""
    at_C1 = labels_C[:, None]
    normaliser_C1 = logits_CV.logsumexp(dim=-1, keepdim=True)
    losses_C = (normaliser_C1 - logits_CV.gather(-1, at_C1))[:, 0]
    logits_CV.sub_(normaliser_C1).exp_()
    logits_CV.scatter_add_(-1, at_C1, logits_CV.new_full((1, 1), -1.0).expand_as(at_C1))
    logits_CV.mul_(weights_C[:, None])
    return (losses_C * weights_C).sum()
