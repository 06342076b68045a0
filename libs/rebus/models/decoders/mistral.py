"""Mistral (arXiv 2310.06825): LLaMA whose tokens see a sliding window."""

from __future__ import annotations

from dataclasses import dataclass

from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.transformer import Decoder
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class MistralConfig(DecoderConfig):
    """Sizes of the decoder; the window is the published one."""

    tie_embeddings: bool = False
    sliding_window: int = 4096


@register("decoder", "mistral", config=MistralConfig)
class Mistral(Decoder):
    """LLaMA whose tokens see a sliding window of positions."""
