"""Mixture of experts: a layer that stands where a feed-forward block stands, its routers, losses and statistics."""

from rebus.models.moe.collect import moe_layers, peek_routing, take_routing, update_biases
from rebus.models.moe.layer import MoeConfig, MoeLayer
from rebus.models.moe.losses import AuxiliaryLossConfig, auxiliary_loss
from rebus.models.moe.routing import Routing

__all__ = [
    "AuxiliaryLossConfig",
    "MoeConfig",
    "MoeLayer",
    "Routing",
    "auxiliary_loss",
    "moe_layers",
    "peek_routing",
    "take_routing",
    "update_biases",
]
