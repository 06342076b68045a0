"""Pre-norm transformer blocks with bidirectional attention, shared by the image encoders."""

# Shape suffixes: B batch, T tokens, D width, N heads, H head dim.

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class EncoderBlock(nn.Module):
    """Self-attention and a GELU feed-forward block, each on the residual stream."""

    def __init__(self, width: int, num_heads: int, hidden_width: int, norm_eps: float) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width={width} is not divisible by num_heads={num_heads}")
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps ``[B, T, D]`` to ``[B, T, D]``."""
        qkv = self.qkv_proj(self.norm1(x_BTD)).unflatten(-1, (3, self.num_heads, -1))
        q_BNTH, k_BNTH, v_BNTH = (part.transpose(1, 2) for part in qkv.unbind(2))
        out_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH)
        x_BTD = x_BTD + self.out_proj(out_BNTH.transpose(1, 2).flatten(2))
        return x_BTD + self.fc2(F.gelu(self.fc1(self.norm2(x_BTD))))
