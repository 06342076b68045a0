"""A bag of hashed words and character n-grams, as fastText's subwords (arXiv 1607.04606).

It needs no vocabulary and knows every script: a word of any language is itself, its n-grams between boundary signs and,
in scripts that write no spaces, its single characters. From a few thousand short names it learns more than a deeper
encoder, since related words share n-grams from the first step.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.models.text_encoders.base import TokenIds
from rebus.registry import register

_WORD = re.compile(r"\w+")
# From here on Unicode holds the CJK scripts, whose single characters carry meaning.
_FIRST_CJK = "\u2e80"
# A text beyond this is cut: it is embedded as what it begins with.
MAX_CHARACTERS = 4096


@dataclass(frozen=True, kw_only=True)
class NgramBagConfig:
    """Sizes of the encoder."""

    width: int = 128
    # Rows of the table; n-grams that hash alike share one.
    num_buckets: int = 16384
    min_ngram: int = 3
    max_ngram: int = 5
    # Share of a text's n-grams left out in training.
    ngram_dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.width < 1 or self.num_buckets < 1:
            raise ValueError(f"width={self.width} and num_buckets={self.num_buckets} must be positive")
        if not 1 <= self.min_ngram <= self.max_ngram <= 8:
            raise ValueError(f"need 1 <= min_ngram={self.min_ngram} <= max_ngram={self.max_ngram} <= 8")
        if not 0 <= self.ngram_dropout < 1:
            raise ValueError(f"ngram_dropout={self.ngram_dropout} is outside [0, 1)")


@register("text-encoder", "ngram-bag", config=NgramBagConfig)
class NgramBag(nn.Module):
    """The mean of hashed word and character n-gram vectors, layer-normed; trained from scratch, for any language."""

    def __init__(self, config: NgramBagConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.table = nn.Parameter(torch.randn(config.num_buckets, config.width) * 0.05)
        self.norm = nn.LayerNorm(config.width)

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Bucket of every n-gram of each text, int64 ``[n]``; a text without a word has the one bucket of nothing."""
        return [self._buckets(text) for text in texts]

    def forward(self, tokens: Sequence[TokenIds]) -> Tensor:
        """Features ``[B, width]`` of B tokenized texts."""
        device = self.table.device
        lengths = torch.tensor([len(ids) for ids in tokens], device=device)
        ids = torch.from_numpy(np.concatenate(tokens)).to(device)
        rows = torch.repeat_interleave(torch.arange(len(tokens), device=device), lengths)
        kept = self._kept(len(ids), device)
        counts = torch.zeros(len(tokens), device=device).index_add(0, rows, kept).clamp(min=1)
        offsets = lengths.cumsum(0) - lengths
        bag = F.embedding_bag(ids, self.table, offsets, mode="sum", per_sample_weights=kept / counts[rows])
        return self.norm(bag)

    def _kept(self, count: int, device: torch.device) -> Tensor:
        if not self.training or not self.config.ngram_dropout:
            return torch.ones(count, device=device)
        return (torch.rand(count, device=device) >= self.config.ngram_dropout).float()

    def _buckets(self, text: str) -> TokenIds:
        hashes = [zlib.crc32(ngram.encode()) % self.config.num_buckets for ngram in self._ngrams(text)]
        return np.array(hashes or [zlib.crc32(b"") % self.config.num_buckets], dtype=np.int64)

    def _ngrams(self, text: str) -> Iterator[str]:
        """Whole words are told from equal n-grams by a sign that no word holds."""
        for word in _WORD.findall(unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]).casefold()):
            yield f"={word}"
            bounded = f"<{word}>"
            for size in range(self.config.min_ngram, self.config.max_ngram + 1):
                yield from (bounded[start : start + size] for start in range(len(bounded) - size + 1))
            yield from (character for character in word if character >= _FIRST_CJK)
