"""The parts of a decoder layer: norms and feed-forward blocks, each mapping ``[..., D]`` to ``[..., D]``."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.decoders.config import DecoderConfig
from rebus.models.gated_mlp import GatedMlp
from rebus.models.moe.layer import MoeLayer

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class RMSNorm(nn.Module):
    """Scales to unit root mean square, then by a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def build_norm(config: DecoderConfig) -> nn.Module:
    """The norm of the residual stream."""
    return (RMSNorm if config.norm == "rms" else nn.LayerNorm)(config.width, config.norm_eps)


class FeedForward(GatedMlp):
    """The gated block as the decoder's settings say it, from ``[..., D]`` to ``[..., D]``."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(
            config.width,
            config.hidden_width,
            config.width,
            bias=config.mlp_bias,
            activation=ACTIVATIONS[config.activation],
        )


class PlainFeedForward(nn.Module):
    """Two projections with an activation between."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.width, config.hidden_width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.hidden_width, config.width, bias=config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., D]`` to ``[..., D]``."""
        return self.down_proj(self.activation(self.up_proj(x)))


def build_feed_forward(config: DecoderConfig, layer: int) -> nn.Module:
    """The feed-forward block of a layer: a mixture of experts, or dense."""
    if config.moe is not None and layer in config.moe_layers:
        return MoeLayer(config.moe, width=config.width)
    return FeedForward(config) if config.gated else PlainFeedForward(config)
