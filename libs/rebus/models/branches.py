"""Attention of rows whose branches share a prefix, without padding and without a mask over whole rows.

The tokens of a batch lie flat: first the prefixes (branch 0) of all rows, then the branches one after another. A
branch of ``L`` tokens attends to its row's prefix and to itself, so its cost is ``L * (P + L)`` instead of ``L * S``
for rows of ``S`` tokens; everything outside attention runs on the flat tokens.
"""

# Shape suffixes: T all tokens, R rows, P longest prefix, B branches, L longest branch, N heads, K kv heads, H head dim.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rebus.models.attention import dense_attention, plain_attention

# Added to hidden scores: exp of it is 0 in float32, and no row of a softmax is ever empty.
HIDDEN = -1e9


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs of the flat batch as a padded grid."""

    # int64 [R, L]: flat index of each entry, 0 where it is padding
    gather: Tensor
    # int64 [tokens]: the entries of R * L that are real, in order
    kept: Tensor

    def to(self, device: torch.device) -> Runs:
        """The same on ``device``."""
        return Runs(gather=self.gather.to(device), kept=self.kept.to(device))


@dataclass(frozen=True, kw_only=True)
class BranchGroup:
    """Branches of like length."""

    runs: Runs
    # int64 [B]: the row whose prefix the branch sees, counted in the order of the prefixes
    row: Tensor
    # int64 [B, P]: flat index of each token of that prefix, 0 where it is padding
    prefix: Tensor
    # float32 [B, 1, L, P + L], added to the scores: 0 visible, ``HIDDEN`` not
    bias: Tensor

    def to(self, device: torch.device) -> BranchGroup:
        """The same on ``device``."""
        row, prefix, bias = (x.to(device) for x in (self.row, self.prefix, self.bias))
        return BranchGroup(runs=self.runs.to(device), row=row, prefix=prefix, bias=bias)


@dataclass(frozen=True, kw_only=True)
class BranchLayout:
    """Where prefixes, then branches lie in the flat batch, group by group: those of like length together."""

    prefixes: Sequence[Runs]
    groups: Sequence[BranchGroup]

    def to(self, device: torch.device) -> BranchLayout:
        """The same on ``device``; itself where it is there."""
        if self.prefixes[0].gather.device == device:
            return self
        return BranchLayout(
            prefixes=[prefixes.to(device) for prefixes in self.prefixes],
            groups=[group.to(device) for group in self.groups],
        )


class Window(NamedTuple):
    """A sliding window: a token sees positions less than ``size`` behind its own."""

    # int64 [T]
    positions_T: Tensor
    size: int


def length_class(length: int) -> int:
    """Runs of one class share a grid: lengths up to 1, 2, 4, 8, ... so that less than half of it is padding."""
    return (length - 1).bit_length()


def branch_layout(
    prefix_lengths: NDArray[np.int64], branch_lengths: NDArray[np.int64], branch_row: NDArray[np.int64]
) -> BranchLayout:
    """The layout of rows with these prefix lengths ``[R]`` and branches ``[B]`` of these rows, each of length >= 1.

    Neighbours of one ``length_class`` form a group, so callers order prefixes and branches by it.
    """
    if not len(prefix_lengths) or prefix_lengths.min() < 1 or (len(branch_lengths) and branch_lengths.min() < 1):
        raise ValueError("every row needs a prefix, and every prefix and branch at least one token")
    lengths = np.concatenate([prefix_lengths, branch_lengths])
    starts = np.cumsum(lengths) - lengths
    count = len(prefix_lengths)
    prefixes = [_runs(starts[at], lengths[at])[0] for at in _alike(prefix_lengths)]
    groups = []
    for members in _alike(branch_lengths):
        runs, _ = _runs(starts[members + count], lengths[members + count])
        row = branch_row[members]
        prefix, prefix_real = _runs(starts[row], lengths[row])
        bias = _bias(prefix_real, length=runs.gather.shape[1])
        groups.append(
            BranchGroup(runs=runs, row=torch.from_numpy(row), prefix=prefix.gather, bias=torch.from_numpy(bias))
        )
    return BranchLayout(prefixes=prefixes, groups=groups)


def _alike(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The indices of neighbours of one length class."""
    classes = np.array([length_class(int(length)) for length in lengths], dtype=np.int64)
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(classes)) + 1) if len(lengths) else []


def branch_attention(
    q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, layout: BranchLayout, window: Window | None = None
) -> Tensor:
    """Attention ``[T, N, H]`` of flat queries over flat keys and values ``[T, K, H]``."""
    parts = []
    for prefixes in layout.prefixes:
        at_RP = prefixes.gather
        # Prefixes are padded at their end, which causal attention never looks at.
        mask_R1PP = _prefix_mask(at_RP, window)
        prefix_RPNH = dense_attention(_take(q_TNH, at_RP), _take(k_TKH, at_RP), _take(v_TKH, at_RP), mask_R1PP)
        parts.append(_take(prefix_RPNH.flatten(0, 1), prefixes.kept))
    for group in layout.groups:
        at_BL = group.runs.gather
        at_BC = torch.cat([group.prefix, at_BL], dim=1)
        bias = _windowed_bias(group.bias, at_BL, at_BC, window)
        out_BLNH = plain_attention(_take(q_TNH, at_BL), _take(k_TKH, at_BC), _take(v_TKH, at_BC), bias)
        parts.append(_take(out_BLNH.flatten(0, 1), group.runs.kept))
    return torch.cat(parts)


def token_runs(layout: BranchLayout) -> tuple[Tensor, Tensor]:
    """Of each flat token its row ``[T]`` and its run ``[T]``: prefixes bear their row's number, branches others."""
    rows, runs, first = [], [], 0
    for prefixes in layout.prefixes:
        rows.append(first + prefixes.kept // prefixes.gather.shape[1])
        runs.append(rows[-1])
        first += len(prefixes.gather)
    for group in layout.groups:
        branch = group.runs.kept // group.runs.gather.shape[1]
        rows.append(group.row[branch])
        runs.append(first + branch)
        first += len(group.row)
    return torch.cat(rows), torch.cat(runs)


def _prefix_mask(at_RP: Tensor, window: Window | None) -> Tensor | None:
    """What prefix tokens see under a window that is shorter than they are, ``[R, 1, P, P]``."""
    if window is None or at_RP.shape[1] <= window.size:
        return None
    return (~_far(at_RP, at_RP, window)).tril()


def _windowed_bias(bias_B1LC: Tensor, at_BL: Tensor, at_BC: Tensor, window: Window | None) -> Tensor:
    if window is None or at_BC.shape[1] <= window.size:
        return bias_B1LC
    return bias_B1LC.masked_fill(_far(at_BL, at_BC, window), HIDDEN)


def _far(at_BL: Tensor, at_BC: Tensor, window: Window) -> Tensor:
    """Which keys ``[B, C]`` lie outside the window of which queries ``[B, L]``, as ``[B, 1, L, C]``."""
    positions_T, size = window
    return (positions_T[at_BL][:, :, None] - positions_T[at_BC][:, None] >= size)[:, None]


def _take(x_TNH: Tensor, at: Tensor) -> Tensor:
    """Entries ``at`` along the first axis.

    Through ``embedding``, whose backward pass is deterministic on any number of threads; that of indexing is not.
    """
    return F.embedding(at, x_TNH.flatten(1)).unflatten(-1, x_TNH.shape[1:])


def _runs(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[Runs, NDArray[np.bool_]]:
    """Runs from these flat indices on, padded to the longest, and which entries ``[R, L]`` are real."""
    steps = np.arange(int(lengths.max()))
    real = steps < lengths[:, None]
    gather = np.where(real, starts[:, None] + steps, 0)
    return Runs(gather=torch.from_numpy(gather), kept=torch.from_numpy(np.flatnonzero(real))), real


def _bias(prefix_real: NDArray[np.bool_], *, length: int) -> NDArray[np.float32]:
    """Scores' bias ``[B, 1, L, P + L]``: a token sees its prefix ``[B, P]`` and its branch up to itself."""
    count = len(prefix_real)
    seen = np.broadcast_to(prefix_real[:, None], (count, length, prefix_real.shape[1]))
    causal = np.broadcast_to(np.tril(np.ones((length, length), dtype=bool)), (count, length, length))
    visible = np.concatenate([seen, causal], axis=2)
    return np.where(visible, np.float32(0), np.float32(HIDDEN))[:, None]
