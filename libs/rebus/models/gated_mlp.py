"""The gated feed-forward block of LLaMA and its kin, between any two widths."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class GatedMlp(nn.Module):
    """SwiGLU and its kin (arXiv 2002.05202): ``down(activation(gate(x)) * up(x))``."""

    def __init__(
        self,
        width_in: int,
        hidden_width: int,
        width_out: int,
        *,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width_in, hidden_width, bias=bias)
        self.up_proj = nn.Linear(width_in, hidden_width, bias=bias)
        self.down_proj = nn.Linear(hidden_width, width_out, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., width_in]`` to ``[..., width_out]``."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
