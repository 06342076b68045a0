"""Qwen2 (arXiv 2407.10671) and Qwen3 (arXiv 2505.09388)."""

from __future__ import annotations

from dataclasses import dataclass

from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.transformer import Decoder
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    """LLaMA with biases on queries, keys and values."""

    rope_theta: float = 1_000_000.0
    norm_eps: float = 1e-6
    attention_bias: bool = True
    output_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(DecoderConfig):
    """LLaMA with normalised queries and keys, whose heads are 128 wide at every size."""

    head_dim: int = 128
    rope_theta: float = 1_000_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True


@register("decoder", "qwen2", config=Qwen2Config)
class Qwen2(Decoder):
    """LLaMA with biases on queries, keys and values."""


@register("decoder", "qwen3", config=Qwen3Config)
class Qwen3(Decoder):
    """LLaMA with normalised queries and keys."""
