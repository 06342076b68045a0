"""The chunked loss equals the plain one, with gradients, and never holds more logits than a chunk's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rebus.objectives.linear_cross_entropy import linear_cross_entropy

TOKENS, WIDTH, VOCAB = 37, 12, 101


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes, in the backward pass too."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        self.elements = max(self.elements, *sizes, 0)
        return out


def parts(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and weight that want gradients, labels (one of them twice), weights of tokens."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=draw).to(dtype).requires_grad_()
    labels = torch.randint(VOCAB, (TOKENS,), generator=draw)
    labels[1] = labels[0]
    return hidden, weight, labels, torch.rand(TOKENS, generator=draw)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="none") * weights).sum()


@pytest.mark.parametrize("chunk", [1, 5, 37, 1000])
def test_equals_plain_cross_entropy_forward_and_gradient(chunk: int) -> None:
    hidden, weight, labels, weights = parts()
    results = []
    for loss in (
        plain(hidden, weight, labels, weights),
        linear_cross_entropy(hidden, weight, labels, weights, chunk_tokens=chunk),
    ):
        results.append([loss, *torch.autograd.grad(loss * 3, [hidden, weight])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_half_precision_sums_in_single() -> None:
    hidden, weight, labels, weights = parts(torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, labels, weights, chunk_tokens=8)
    exact = [part.detach().float().requires_grad_() for part in (hidden, weight)]
    torch.testing.assert_close(loss, plain(exact[0], exact[1], labels, weights), atol=0.0, rtol=1e-2)
    found = torch.autograd.grad(loss, [hidden, weight])
    expected = torch.autograd.grad(plain(exact[0], exact[1], labels, weights), exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, atol=3e-2, rtol=3e-2)  # bfloat16 keeps 8 bits


def test_only_wanted_gradients_are_made() -> None:
    hidden, weight, labels, weights = parts()
    loss = linear_cross_entropy(hidden, weight.detach(), labels, weights, chunk_tokens=8)
    torch.testing.assert_close(
        torch.autograd.grad(loss, hidden)[0], torch.autograd.grad(plain(hidden, weight, labels, weights), hidden)[0]
    )
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels, weights, chunk_tokens=8)
    torch.testing.assert_close(loss, plain(hidden, weight, labels, weights))
    assert linear_cross_entropy(hidden[:0], weight, labels[:0], weights[:0], chunk_tokens=8) == 0
    with pytest.raises(ValueError, match="chunk_tokens=0"):
        linear_cross_entropy(hidden, weight, labels, weights, chunk_tokens=0)


def test_no_tensor_is_larger_than_a_chunk_of_logits() -> None:
    chunk = 13
    hidden, weight, labels, weights = parts()
    with Largest() as whole:
        plain(hidden, weight, labels, weights).backward()
    with Largest() as chunked:
        linear_cross_entropy(hidden, weight, labels, weights, chunk_tokens=chunk).backward()
    assert whole.elements == TOKENS * VOCAB
    assert chunked.elements == max(chunk * VOCAB, VOCAB * WIDTH)
