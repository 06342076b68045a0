"""Scaled dot-product attention over ``[batch, tokens, heads, head width]``, the layout that projections give."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

# Queries [B, S, N, H], keys and values [B, S, K, H] -> [B, S, N, H].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, causal: bool = True
) -> Tensor:
    """Attention of queries ``[B, S, N, H]`` over keys and values ``[B, C, K, H]``; ``K`` divides ``N``.

    ``mask`` ``[B, 1, S, C]`` (True: visible) decides what is seen; without one every query sees all keys if it is alone
    or ``causal`` is off, else those up to itself.
    """
    out = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and causal and queries.shape[1] > 1,
        enable_gqa=queries.shape[2] != keys.shape[2],
    )
    return out.transpose(1, 2)


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """The same as three tensor operations, ``bias`` ``[B, 1, S, C]`` added to the scores.

    For many short sequences: the fused kernel's backward pass on CPUs costs several times as much there.
    """
    repeats = queries.shape[2] // keys.shape[2]
    if repeats > 1:
        keys, values = (x.repeat_interleave(repeats, dim=2) for x in (keys, values))
    scores = (queries.transpose(1, 2) @ keys.permute(0, 2, 3, 1)) * queries.shape[-1] ** -0.5 + bias
    return (scores.softmax(dim=-1) @ values.transpose(1, 2)).transpose(1, 2)
