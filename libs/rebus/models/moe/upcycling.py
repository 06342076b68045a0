"""Sparse upcycling (arXiv 2212.05055; "Llama 3 Meets MoE"): a trained dense block becomes a mixture of its copies."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from rebus.errors import invalid
from rebus.models.moe.layer import MoeConfig, MoeLayer


class DenseSwiglu(Protocol):
    """A bias-free SwiGLU block, as ``rebus.models.decoders.llama.FeedForward`` and transformers' LLaMA have it."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear


@torch.no_grad()
def upcycle(dense: DenseSwiglu, config: MoeConfig) -> MoeLayer:
    """A mixture whose experts are copies of ``dense``; the router starts at random.

    As long as a token's weights sum to one and no pair is dropped, it computes what ``dense`` does. Routers that weigh
    by a softmax over all experts (OLMoE, Switch, ST-MoE) start with that times the chosen experts' share.

    Raises ``InvalidArgumentError`` where the config's experts cannot be such copies.
    """
    width, hidden_width = dense.gate_proj.in_features, dense.gate_proj.out_features
    _check(config, hidden_width)
    weight = dense.gate_proj.weight
    layer = MoeLayer(config, width=width).to(device=weight.device, dtype=weight.dtype)
    layer.experts.in_proj.copy_(torch.cat([weight, dense.up_proj.weight]).expand_as(layer.experts.in_proj))
    layer.experts.down_proj.copy_(dense.down_proj.weight.expand_as(layer.experts.down_proj))
    return layer


def _check(config: MoeConfig, hidden_width: int) -> None:
    if config.hidden_width != hidden_width:
        raise invalid("moe.hidden_width", f"is {config.hidden_width}, the dense block has {hidden_width}")
    if config.activation != "swiglu":
        raise invalid("moe.activation", f"is {config.activation!r}, the dense block is a SwiGLU")
    if config.num_shared_experts:
        raise invalid("moe.num_shared_experts", "an upcycled block has none: they would be added to the dense output")
