"""Attention of rows whose branches share a prefix, without padding and without a mask over whole rows.

The tokens of a batch lie flat: first the prefixes (branch 0) of all rows, then the branches one after another. A branch
of ``L`` tokens attends to its row's prefix and to itself, so its cost is ``L * (P + L)`` instead of ``L * S`` for rows of
``S`` tokens; everything outside attention runs on the flat tokens.
"""

# Shape suffixes: T all tokens, R rows, P longest prefix, B branches, L longest branch, N heads, K kv heads, H head dim.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rebus.models.attention import dense_attention, plain_attention


# Added to hidden scores: exp of it is 0 in float32, and no row of a softmax is ever empty.
HIDDEN = -1e9


@dataclass(frozen=True, kw_only=True)
class BranchLayout:
    """Where the tokens of prefixes and branches lie in the flat batch.

    ``gather`` tensors are padded with 0, any valid index; ``kept`` tensors list the entries of the padded grids that are
    real, in flat order.
    """

    # int64 [R, P]
    prefix_gather: Tensor
    # int64 [prefix tokens], into R * P
    prefix_kept: Tensor
    # int64 [B, L]
    branch_gather: Tensor
    # int64 [branch tokens], into B * L
    branch_kept: Tensor
    # int64 [B]: the row whose prefix the branch sees
    branch_row: Tensor
    # float32 [B, 1, L, P + L], added to the scores: 0 visible, a large negative number hidden
    branch_bias: Tensor


def branch_layout(prefix_lengths: NDArray[np.int64], branch_lengths: NDArray[np.int64], branch_row: NDArray[np.int64]) -> BranchLayout:
    """The layout of rows with these prefix lengths ``[R]`` (at least 1 each) and branches ``[B]`` of these rows."""
    if not len(prefix_lengths) or prefix_lengths.min() < 1:
        raise ValueError("every row needs a prefix of at least one token")
    prefix_gather, prefix_real = _grid(prefix_lengths, first=0)
    branch_gather, branch_real = _grid(branch_lengths, first=int(prefix_lengths.sum()))
    length = branch_gather.shape[1]
    causal = np.tril(np.ones((length, length), dtype=bool))
    seen = np.broadcast_to(prefix_real[branch_row][:, None], (len(branch_row), length, prefix_real.shape[1]))
    mask = np.concatenate([seen, np.broadcast_to(causal, (len(branch_row), length, length))], axis=2)
    return BranchLayout(
        prefix_gather=torch.from_numpy(prefix_gather),
        prefix_kept=torch.from_numpy(np.flatnonzero(prefix_real)),
        branch_gather=torch.from_numpy(branch_gather),
        branch_kept=torch.from_numpy(np.flatnonzero(branch_real)),
        branch_row=torch.from_numpy(branch_row),
        branch_bias=torch.from_numpy(np.where(mask[:, None], np.float32(0), np.float32(HIDDEN))),
    )


def branch_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, layout: BranchLayout) -> Tensor:
    """Attention ``[T, N, H]`` of flat queries over flat keys and values ``[T, K, H]``."""
    at_RP, at_BL = layout.prefix_gather, layout.branch_gather
    # Prefixes are padded at their end, which causal attention never looks at.
    prefix_RPNH = dense_attention(_take(q_TNH, at_RP), _take(k_TKH, at_RP), _take(v_TKH, at_RP))
    parts = [_take(prefix_RPNH.flatten(0, 1), layout.prefix_kept)]
    if len(at_BL):
        at_BC = torch.cat([at_RP[layout.branch_row], at_BL], dim=1)
        keys, values = _take(k_TKH, at_BC), _take(v_TKH, at_BC)
        branch_BLNH = plain_attention(_take(q_TNH, at_BL), keys, values, layout.branch_bias)
        parts.append(_take(branch_BLNH.flatten(0, 1), layout.branch_kept))
    return torch.cat(parts)


def _take(x_TNH: Tensor, at: Tensor) -> Tensor:
    """Entries ``at`` along the first axis.

    Through ``embedding``, whose backward pass is deterministic on any number of threads; that of indexing is not.
    """
    return F.embedding(at, x_TNH.flatten(1)).unflatten(-1, x_TNH.shape[1:])


def _grid(lengths: NDArray[np.int64], *, first: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Flat indices of consecutive runs, padded to the longest, and which entries are real."""
    longest = int(lengths.max()) if len(lengths) else 0
    real = np.arange(longest) < lengths[:, None]
    starts = first + np.cumsum(lengths) - lengths
    return np.where(real, starts[:, None] + np.arange(longest), 0), real
