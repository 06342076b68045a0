"""Keeps the experts of a model in use: the auxiliary losses of its mixture-of-experts layers."""

from __future__ import annotations

from torch import Tensor

from rebus.models.mllm import Mllm
from rebus.models.moe import AuxiliaryLossConfig, auxiliary_loss, take_routing
from rebus.objectives.base import MllmOutputs
from rebus.registry import register


@register("objective", "expert-balance", config=AuxiliaryLossConfig, paper="mm1")
class ExpertBalance:
    """Load balance, router z and their kin, means over the layers; zero for a model without experts."""

    needs_decoder = True

    def __init__(self, config: AuxiliaryLossConfig) -> None:
        self._config = config

    def __call__(self, model: Mllm, outputs: MllmOutputs) -> Tensor:
        """The weighted sum of the losses of the forward pass that ``outputs`` came from."""
        del outputs
        total, _ = auxiliary_loss(take_routing(model).values(), self._config)
        return total.to(next(model.parameters()).device)
