"""The gated feed-forward block of LLaMA and its kin, between any two widths."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GatedMlp(nn.Module):
    """SwiGLU (arXiv 2002.05202) without biases."""

    def __init__(self, width_in: int, hidden_width: int, width_out: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width_in, hidden_width, bias=False)
        self.up_proj = nn.Linear(width_in, hidden_width, bias=False)
        self.down_proj = nn.Linear(hidden_width, width_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., width_in]`` to ``[..., width_out]``."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
