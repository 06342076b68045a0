"""Attention of queries over a context of their own width, shared by connectors and embedding heads."""

# Shape suffixes: B batch, S queries, T context tokens, D and C their widths, N heads, K key/value heads, H head dim.

from __future__ import annotations

from torch import Tensor, nn

from rebus.models.attention import dense_attention


class CrossAttention(nn.Module):
    """Multi-head attention without positions; self-attention where the context is the queries."""

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        context_width: int | None = None,
        num_kv_heads: int | None = None,
        head_width: int | None = None,
        bias: bool = False,
    ) -> None:
        """``head_width`` defaults to ``width / num_heads``, ``context_width`` to ``width``."""
        super().__init__()
        num_kv_heads = num_kv_heads or num_heads
        if num_heads % num_kv_heads or (head_width is None and width % num_heads):
            raise ValueError(f"num_heads={num_heads} must divide width={width} and be divisible by {num_kv_heads=}")
        head_width, context_width = head_width or width // num_heads, context_width or width
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.q_proj = nn.Linear(width, num_heads * head_width, bias=bias)
        self.k_proj = nn.Linear(context_width, num_kv_heads * head_width, bias=bias)
        self.v_proj = nn.Linear(context_width, num_kv_heads * head_width, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_width, width, bias=bias)

    def forward(self, x_BSD: Tensor, context_BTC: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps queries ``[B, S, D]`` over a context ``[B, T, C]`` to ``[B, S, D]``.

        ``mask`` (True: visible) broadcasts to ``[B, 1, S, T]``; every query must see something.
        """
        q_BSNH = self.q_proj(x_BSD).unflatten(-1, (self.num_heads, -1))
        k_BTKH = self.k_proj(context_BTC).unflatten(-1, (self.num_kv_heads, -1))
        v_BTKH = self.v_proj(context_BTC).unflatten(-1, (self.num_kv_heads, -1))
        return self.o_proj(dense_attention(q_BSNH, k_BTKH, v_BTKH, mask, causal=False).flatten(2))
