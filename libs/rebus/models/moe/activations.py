"""The experts' activations with their derivatives, both written into buffers of the caller."""

# Shape suffixes: C rows, H width of what an activation reads, F width of what it gives.

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Activation(Protocol):
    """What stands between an expert's two projections."""

    # H = fan_in * F.
    fan_in: int

    def forward(self, h_CH: Tensor, out_CF: Tensor) -> None:
        """Writes the activations of ``h``."""
        ...

    def recompute(self, h_CH: Tensor, out_CF: Tensor, grad_CH: Tensor) -> None:
        """Writes the activations again, and into ``grad`` what ``backward`` wants to find there."""
        ...

    def backward(self, grad_CF: Tensor, h_CH: Tensor, grad_CH: Tensor) -> None:
        """Turns ``grad`` into the gradient of ``h``, given that of the activations."""
        ...

    def __call__(self, h_CH: Tensor) -> Tensor:
        """The activations ``[C, F]``, in the graph."""
        ...


class Swiglu:
    """``silu(gate) * up``, the gate in the first half (arXiv 2002.05202)."""

    fan_in = 2

    def forward(self, h_CH: Tensor, out_CF: Tensor) -> None:
        gate_CF, up_CF = h_CH.chunk(2, dim=-1)
        torch.ops.aten.silu.out(gate_CF, out=out_CF)
        out_CF.mul_(up_CF)

    def recompute(self, h_CH: Tensor, out_CF: Tensor, grad_CH: Tensor) -> None:
        gate_CF, up_CF = h_CH.chunk(2, dim=-1)
        sigmoid_CF, silu_CF = grad_CH.chunk(2, dim=-1)
        # The exponential is most of the work, so it is taken once for both passes.
        torch.sigmoid(gate_CF, out=sigmoid_CF)
        torch.mul(gate_CF, sigmoid_CF, out=silu_CF)
        torch.mul(silu_CF, up_CF, out=out_CF)

    def backward(self, grad_CF: Tensor, h_CH: Tensor, grad_CH: Tensor) -> None:
        sigmoid_CF, silu_CF = grad_CH.chunk(2, dim=-1)
        # silu' = silu + sigmoid * (1 - silu)
        torch.lerp(silu_CF, torch.ones_like(silu_CF[:1]), sigmoid_CF, out=sigmoid_CF)
        sigmoid_CF.mul_(grad_CF).mul_(h_CH.chunk(2, dim=-1)[1])
        silu_CF.mul_(grad_CF)

    def __call__(self, h_CH: Tensor) -> Tensor:
        gate_CF, up_CF = h_CH.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate_CF) * up_CF


class Gelu:
    """The exact GELU."""

    fan_in = 1

    def forward(self, h_CH: Tensor, out_CF: Tensor) -> None:
        torch.ops.aten.gelu.out(h_CH, out=out_CF)

    def recompute(self, h_CH: Tensor, out_CF: Tensor, grad_CH: Tensor) -> None:
        del grad_CH
        torch.ops.aten.gelu.out(h_CH, out=out_CF)

    def backward(self, grad_CF: Tensor, h_CH: Tensor, grad_CH: Tensor) -> None:
        torch.ops.aten.gelu_backward.grad_input(grad_CF, h_CH, grad_input=grad_CH)

    def __call__(self, h_CH: Tensor) -> Tensor:
        return torch.nn.functional.gelu(h_CH)


ACTIVATIONS: Mapping[str, Activation] = {"swiglu": Swiglu(), "gelu": Gelu()}
