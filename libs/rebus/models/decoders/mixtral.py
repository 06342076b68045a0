"""Mixtral (arXiv 2401.04088): Mistral without a window, of eight experts in every layer, two a token."""

from __future__ import annotations

from dataclasses import dataclass, field

from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.transformer import Decoder
from rebus.models.moe.layer import MoeConfig
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(DecoderConfig):
    """Mixtral at a small size."""

    rope_theta: float = 1_000_000.0
    tie_embeddings: bool = False
    moe: MoeConfig | None = field(default_factory=MoeConfig)


@register("decoder", "mixtral", config=MixtralConfig)
class Mixtral(Decoder):
    """LLaMA of experts in every layer."""
