"""How a decoder starts: GPT-2's scheme, but attention that works from the first step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.layer import Attention, Layer
from rebus.models.moe.routers.base import Router

# Mean diagonal of a layer's value-then-output map at the start: the share of what is attended to that is taken over.
_COPY_STRENGTH = 0.5
# Scale of equal query and key weights: a token's score with itself is about 0.35 * this squared * sqrt(head width).
_LIKENESS = 1.5


@torch.no_grad()
def init_weights(decoder: nn.Module, config: DecoderConfig) -> None:
    """Draws the weights of a decoder with the attribute ``layers``, and of what stands in them as feed-forward.

    Routers keep the weights they were made with: what they start from is part of each one's paper.
    """
    routers = {weight for module in decoder.modules() if isinstance(module, Router) for weight in module.parameters()}
    for name, parameter in decoder.named_parameters():
        if parameter in routers:
            continue
        if parameter.dim() > 1:
            # Of a dense block, and of experts, whose weights are stacked and have no module each.
            shrink = math.sqrt(2 * config.num_layers) if name.endswith(("down_proj.weight", "down_proj")) else 1.0
            nn.init.normal_(parameter, std=0.02 / shrink)
        elif name.endswith("_proj.bias"):
            nn.init.zeros_(parameter)
    for layer in decoder.layers:  # pyright: ignore[reportGeneralTypeIssues]
        assert isinstance(layer, Layer)
        _init_attention(layer.self_attn, config)


def _init_attention(attention: Attention, config: DecoderConfig) -> None:
    """Heads that look for their like and copy what they find; with biases, also heads that look at places.

    "Mimetic Initialization of Self-Attention Layers" (arXiv 2305.09828): with equal query and key weights a token
    attends to tokens like itself, and with output weights that undo the value weights it takes over what they hold. A
    word then finds the image tokens that show it, which a small model otherwise takes most of its training to discover.
    """
    width, head_width = config.width, config.head_width
    groups = config.num_heads // config.num_kv_heads
    nn.init.normal_(attention.q_proj.weight, std=_LIKENESS / width**0.5)
    nn.init.normal_(attention.v_proj.weight, std=(_COPY_STRENGTH / width) ** 0.5)
    if config.positions == "rotary":
        # Fast rotary pairs would scramble likeness within a few tokens.
        fast = torch.arange(head_width) % (head_width // 2) < head_width // 5
        attention.q_proj.weight.unflatten(0, (-1, head_width))[:, fast] *= 0.1
    first_of_group = attention.q_proj.weight.unflatten(0, (-1, groups, head_width))[:, 0]
    attention.k_proj.weight.copy_(first_of_group.flatten(0, 1))
    shared = attention.v_proj.weight.unflatten(0, (-1, 1, head_width)).expand(-1, groups, -1, -1)
    attention.o_proj.weight.copy_(shared.flatten(0, 2).T / groups)
    if config.attention_bias and config.positions == "rotary":
        _place_heads(attention, config)


def _place_heads(attention: Attention, config: DecoderConfig) -> None:
    """Points a head at the token before and one at the last few, so that phrases are read whole; the others look away.

    The others look for their like and would find themselves. At most half of the key/value heads look at places.
    """
    groups = config.num_heads // config.num_kv_heads
    near = [_Place(0, 12.0, 1), _Place(2, 8.0, 1)][: config.num_kv_heads // 2]
    away = [_Place(0, -8.0, 0)] * (config.num_kv_heads - len(near))
    for head, place in enumerate(near + away):
        _bias_head(attention, config, head, place)
    attention.k_proj.weight[: len(near) * config.head_width] *= 0.2
    attention.q_proj.weight[: len(near) * groups * config.head_width] *= 0.2


class _Place(NamedTuple):
    """Where a head looks: ``strength`` times the mean of ``cos(f * (distance - peak))`` is added to its scores.

    f runs over the frequencies of four rotary pairs; the first pairs are the fastest and see nearest.
    """

    first_pair: int
    strength: float
    peak: int


def _bias_head(attention: Attention, config: DecoderConfig, head: int, place: _Place) -> None:
    width, groups = config.head_width, config.num_heads // config.num_kv_heads
    pairs = torch.arange(place.first_pair, min(place.first_pair + 4, width // 2))
    size = (abs(place.strength) * width**0.5 / len(pairs)) ** 0.5
    angle = place.peak * config.rope_theta ** (-2.0 * pairs / width)
    attention.k_proj.bias[head * width + pairs] = size
    for member in range(head * groups, (head + 1) * groups):
        signed = math.copysign(size, place.strength)
        attention.q_proj.bias[member * width + pairs] = signed * angle.cos()
        attention.q_proj.bias[member * width + width // 2 + pairs] = -signed * angle.sin()
