"""LLaMA (arXiv 2302.13971), and SmolLM2, which is one: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

from __future__ import annotations

from dataclasses import dataclass

from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.layer import Layer
from rebus.models.decoders.parts import FeedForward
from rebus.models.decoders.rotary import rotary_tables, rotate
from rebus.models.decoders.transformer import Decoder
from rebus.registry import register

__all__ = ["FeedForward", "Layer", "Llama", "LlamaConfig", "rotary_tables", "rotate"]


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """Sizes of the decoder."""


@register("decoder", "llama", config=LlamaConfig, paper="mm1")
class Llama(Decoder):
    """A LLaMA-style causal decoder over embeddings; the caller embeds, so that images can stand among words."""
