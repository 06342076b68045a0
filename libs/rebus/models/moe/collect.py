"""What the layers of a model decided in the last forward pass, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from rebus.models.moe.layer import MoeLayer
from rebus.models.moe.routers.sigmoid import SigmoidRouter
from rebus.models.moe.routing import Routing


def moe_layers(model: nn.Module) -> Iterator[tuple[str, MoeLayer]]:
    """The mixture-of-experts layers of a model by name, in order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, MoeLayer))


def take_routing(model: nn.Module) -> dict[str, Routing]:
    """Every layer's routing of the last forward pass by the layer's name; the layers keep it no longer.

    A layer that has not run since the last call is missing.
    """
    taken: dict[str, Routing] = {}
    for name, layer in moe_layers(model):
        if layer.routing is not None:
            taken[name], layer.routing = layer.routing, None
    return taken


def peek_routing(model: nn.Module) -> dict[str, Routing]:
    """What ``take_routing`` would give, outside the graph, and left for it to take."""
    return {name: layer.routing.detach() for name, layer in moe_layers(model) if layer.routing is not None}


def update_biases(model: nn.Module, routings: Mapping[str, Routing]) -> None:
    """Balances routers without a loss: moves each sigmoid router's bias by its layer's load; once an optimizer step.

    Those of frozen layers, which are in evaluation mode, stay.

    With several workers, sum their counts first and call each router's ``update_bias``.
    """
    for name, layer in moe_layers(model):
        if name in routings and layer.training and isinstance(layer.gate, SigmoidRouter):
            layer.gate.update_bias(routings[name].counts())
