"""GPT-2 and OPT (arXiv 2205.01068): learned positions, LayerNorm, biases everywhere, no gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.transformer import Decoder
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class Gpt2Config(DecoderConfig):
    """GPT-2 at a small size."""

    hidden_width: int = 512
    positions: Literal["rotary", "learned"] = "learned"
    max_positions: int = 1024
    norm: Literal["rms", "layer"] = "layer"
    attention_bias: bool = True
    activation: Literal["silu", "gelu", "gelu-tanh", "relu"] = "gelu-tanh"
    gated: bool = False
    mlp_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class OptConfig(Gpt2Config):
    """OPT at a small size: ReLU, and two rows before the table of positions begins."""

    max_positions: int = 2048
    position_offset: int = 2
    activation: Literal["silu", "gelu", "gelu-tanh", "relu"] = "relu"


@register("decoder", "gpt2", config=Gpt2Config)
class Gpt2(Decoder):
    """Learned positions, LayerNorm, biases, tanh-GELU."""


@register("decoder", "opt", config=OptConfig)
class Opt(Decoder):
    """GPT-2 with ReLU."""
