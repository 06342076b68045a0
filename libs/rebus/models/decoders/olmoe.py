"""OLMoE (arXiv 2409.02060): many small experts in every layer, eight a token; queries and keys normalised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.transformer import Decoder
from rebus.models.moe.layer import MoeConfig
from rebus.registry import register


def _experts() -> MoeConfig:
    return MoeConfig(router={"name": "top-k", "top_k": 8, "renormalize": False}, num_experts=64, hidden_width=64)


@dataclass(frozen=True, kw_only=True)
class OlmoeConfig(DecoderConfig):
    """OLMoE at a small size; a recipe that sets ``moe`` sets all of it, the router too."""

    tie_embeddings: bool = False
    qk_norm: bool = True
    qk_norm_over: Literal["head", "token"] = "token"
    moe: MoeConfig | None = field(default_factory=_experts)


@register("decoder", "olmoe", config=OlmoeConfig, paper="olmoe")
class Olmoe(Decoder):
    """LLaMA of many small experts, with normalised queries and keys."""
