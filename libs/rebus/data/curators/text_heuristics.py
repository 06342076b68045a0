"""Texts that no model needs to read to see that they are bad."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported.)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rebus.data.columns import joined_texts
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.shingles import ngram_hashes, normalized
from rebus.registry import register

SYMBOLS = "symbol_ratio"
REPEATED = "repeated_ngrams"
WORD_LENGTH = "mean_word_length"


@dataclass(frozen=True, kw_only=True)
class TextHeuristicsConfig:
    """Bounds of a text; one with fewer words than an n-gram is judged by its symbols alone.

    The defaults for words and repeats are those of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A.1); that for
    symbols is ours. Texts without spaces between words need other bounds of a word's length.
    """

    # Share of the characters that are neither letters, marks, digits nor white space.
    max_symbol_ratio: float = 0.3
    # Share of the n-grams of words that occurred before in the same text.
    max_repeated_ngrams: float = 0.15
    ngram: int = 5
    # Characters a word, on average.
    min_word_length: float = 3.0
    max_word_length: float = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.max_symbol_ratio <= 1 and 0 <= self.max_repeated_ngrams <= 1):
            raise ValueError("max_symbol_ratio and max_repeated_ngrams are shares, 0 to 1")
        if self.ngram < 1 or not 0 <= self.min_word_length <= self.max_word_length:
            raise ValueError(f"ngram={self.ngram} or the bounds of a word's length are out of range")


@register("curator", "text-heuristics", config=TextHeuristicsConfig, paper="yi")
class TextHeuristics(Curator):
    """Drops texts by their share of symbols, their repeated n-grams and the length of their words; adds all three."""

    reads = ("segments",)
    adds: Mapping[str, pa.DataType] = dict.fromkeys((SYMBOLS, REPEATED, WORD_LENGTH), pa.float32())

    def __init__(self, config: TextHeuristicsConfig) -> None:
        self._config = config

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """A row without text stays, and has nulls."""
        texts = joined_texts(observed)
        symbols, words = symbol_ratios(texts), _word_counts(texts)
        lengths = _lengths(normalized(texts)) - np.maximum(words - 1, 0)
        enough = words >= self._config.ngram
        repeated = np.where(enough, repeated_ngrams(texts, self._config.ngram), np.nan)
        word_length = np.where(enough, lengths / np.maximum(words, 1), np.nan)
        rows = zip(symbols.tolist(), repeated.tolist(), word_length.tolist(), strict=True)
        values = {SYMBOLS: symbols, REPEATED: repeated, WORD_LENGTH: word_length}
        return Judgement(
            [self._judge(*row) for row in rows],
            {name: pa.array(found, pa.float32(), mask=np.isnan(found)) for name, found in values.items()},
        )

    def _judge(self, symbols: float, repeated: float, word_length: float) -> str:
        """Comparisons with NaN are false: what was not measured is not held against a text."""
        config = self._config
        if symbols > config.max_symbol_ratio:
            return f"{symbols:.0%} of its characters are symbols, more than {config.max_symbol_ratio:.0%}"
        if repeated > config.max_repeated_ngrams:
            return f"{repeated:.0%} of its {config.ngram}-grams are repeats, more than {config.max_repeated_ngrams:.0%}"
        if word_length < config.min_word_length or word_length > config.max_word_length:
            bounds = f"{config.min_word_length:g} to {config.max_word_length:g}"
            return f"its words have {word_length:.1f} characters on average, outside {bounds}"
        return KEEP


def symbol_ratios(texts: pa.Array) -> NDArray[np.float64]:
    """Share of each text's characters that are neither letters, marks, digits nor white space; NaN for no text."""
    total = _lengths(texts)
    symbols = _lengths(pc.replace_substring_regex(texts, pattern=r"[\pL\pM\pN\s]", replacement=""))
    return np.where(total > 0, symbols / np.maximum(total, 1), np.nan)


def repeated_ngrams(texts: pa.Array, n: int) -> NDArray[np.float64]:
    """Share of each text's n-grams of words that occurred before in it; 0 for no text."""
    hashes, offsets = ngram_hashes(texts, n)
    counts = np.diff(offsets)
    rows = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((hashes, rows))
    same = (np.diff(hashes[order]) == 0) & (np.diff(rows[order]) == 0)
    repeats = np.bincount(rows[order][1:][same], minlength=len(counts)) if len(rows) else np.zeros(len(counts))
    return repeats / np.maximum(counts, 1)


def _word_counts(texts: pa.Array) -> NDArray[np.int64]:
    _, offsets = ngram_hashes(texts, 1)
    return np.diff(offsets)


def _lengths(texts: pa.Array) -> NDArray[np.int64]:
    return pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
