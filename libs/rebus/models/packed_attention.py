"""Attention over a flat batch: grids and SDPA, or one block-sparse kernel where the device has it."""

# Shape suffixes: T all tokens, N heads, K kv heads, H head dim.

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from rebus.models.branches import BranchLayout, Window, branch_attention, token_runs

# Flat queries [T, N, H], keys and values [T, K, H] -> [T, N, H].
PackedAttend = Callable[[Tensor, Tensor, Tensor], Tensor]
_KERNEL_CAPABILITY = (8, 0)  # Ampere; the Triton kernels of FlexAttention start there
_KERNEL_HEAD_WIDTH = 16


def packed_attention(layout: BranchLayout, positions_T: Tensor, window: int = 0) -> PackedAttend:
    """Attention of the flat batch that ``layout`` describes, for every layer of one forward pass.

    With a ``window`` a token sees only positions less than that far behind it.
    """
    layout = layout.to(positions_T.device)
    near = Window(positions_T, window) if window else None
    grids = functools.partial(branch_attention, layout=layout, window=near)
    if not has_kernel(positions_T.device):
        return grids
    mask = block_mask(layout, near)

    def attend(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        if q_TNH.shape[-1] < _KERNEL_HEAD_WIDTH:
            return grids(q_TNH, k_TKH, v_TKH)
        return flat_attention(q_TNH, k_TKH, v_TKH, mask, kernel=_compiled())

    return attend


def has_kernel(device: torch.device) -> bool:
    """Whether the device runs FlexAttention's fused kernel (arXiv 2412.05496)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _KERNEL_CAPABILITY


def block_mask(layout: BranchLayout, window: Window | None) -> BlockMask:
    """Which blocks of the flat batch see which: made once a forward pass, shared by its layers."""
    rows_T, runs_T = token_runs(layout)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch, head
        # A row's prefix lies before its branches, so the flat order is causal for both; prefix runs are those of rows.
        own = (runs_T[key] == runs_T[query]) | (runs_T[key] == rows_T[query])
        seen = own & (key <= query)
        if window is None:
            return seen
        return seen & (window.positions_T[query] - window.positions_T[key] < window.size)

    count = len(rows_T)
    return create_block_mask(visible, B=None, H=None, Q_LEN=count, KV_LEN=count, device=str(rows_T.device))


def flat_attention(
    q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, mask: BlockMask, *, kernel: Callable[..., Tensor] = flex_attention
) -> Tensor:
    """``branch_attention`` through FlexAttention; ``kernel`` is its compiled or its plain form."""
    q_1NTH, k_1KTH, v_1KTH = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
    shared = q_TNH.shape[1] != k_TKH.shape[1]
    return kernel(q_1NTH, k_1KTH, v_1KTH, block_mask=mask, enable_gqa=shared)[0].transpose(0, 1)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    # Every batch has another number of tokens: one kernel for all lengths, not one compilation each.
    return torch.compile(flex_attention, dynamic=True)
