"""A language model of text alone: a decoder by name, and the number of ids it knows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rebus import registry
from rebus.models.cache import KVCache
from rebus.models.decoders.transformer import Decoder
from rebus.registry import Spec


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids with a role, named as in a Hugging Face ``config.json``; chat models may have several ends of an answer."""

    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class CausalLmConfig:
    """The decoder, by component name and settings."""

    decoder: Spec = registry.component("decoder", "llama")
    # Ids the decoder knows; the tokenizer's, or more.
    vocab_size: int
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size} must be positive")


class CausalLm(nn.Module):
    """Predicts text from text; what Hugging Face folders of language models become."""

    def __init__(self, config: CausalLmConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder: Decoder = registry.build(
            "decoder", config.decoder, field="model.decoder", vocab_size=config.vocab_size
        )

    def forward(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Next-token logits ``[B, S, V]`` of rows ``[B, S]`` without padding.

        With a cache the rows go on where it ends; one token at a time, once it holds any.
        """
        first = 0 if cache is None else cache.length
        positions = torch.arange(first, first + input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        return self.decoder.logits(self.decoder(self.decoder.embed_tokens(input_ids), positions, cache=cache))

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for ``batch_size`` rows of up to ``capacity`` tokens."""
        return self.decoder.new_cache(batch_size, capacity)
