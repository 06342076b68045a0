"""The experts: feed-forward blocks of one shape, their weights stacked, named and laid out as in transformers."""

# Shape suffixes: T tokens, E experts, D width, F hidden, H = F or 2F.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from rebus.models.moe.activations import ACTIVATIONS, Activation
from rebus.models.moe.dispatch import Dispatch
from rebus.models.moe.grouped import grouped_forward
from rebus.models.moe.segments import segments_forward

ActivationName = Literal["swiglu", "gelu"]
# How the experts' products are computed; "auto" takes what suits the device.
Kernel = Literal["auto", "grouped", "segments"]
_KERNELS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Dispatch, Activation], Tensor]] = {
    "grouped": grouped_forward,
    "segments": segments_forward,
}


class Experts(nn.Module):
    """E bias-free feed-forward blocks ``[D] -> [F] -> [D]``."""

    def __init__(
        self, *, num_experts: int, width: int, hidden_width: int, activation: ActivationName, kernel: Kernel
    ) -> None:
        super().__init__()
        self.activation, self.kernel = ACTIVATIONS[activation], kernel
        fan_in = self.activation.fan_in
        name = "gate_up_proj" if fan_in == 2 else "up_proj"
        self.register_parameter(name, nn.Parameter(torch.randn(num_experts, fan_in * hidden_width, width) * 0.02))
        self.down_proj = nn.Parameter(torch.randn(num_experts, width, hidden_width) * 0.02)

    @property
    def in_proj(self) -> nn.Parameter:
        """The first projection ``[E, H, D]``: ``gate_up_proj`` where the activation has a gate, else ``up_proj``."""
        return self.get_parameter("gate_up_proj" if self.activation.fan_in == 2 else "up_proj")

    def forward(self, x_TD: Tensor, plan: Dispatch) -> Tensor:
        """Sum of each token's experts, weighted, ``[T, D]``."""
        kernel = self.kernel
        if kernel == "auto":
            kernel = "grouped" if x_TD.is_cuda else "segments"
        dtype = _compute_dtype(x_TD)
        plan = plan.with_weights(plan.weights_A.to(dtype))
        return _KERNELS[kernel](x_TD.to(dtype), self.in_proj.to(dtype), self.down_proj.to(dtype), plan, self.activation)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What a linear layer would compute in: autocast's dtype where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
