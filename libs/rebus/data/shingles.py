"""Texts as sets of hashed n-grams, a whole column at a time.

Text is compared without case, punctuation and the choice among Unicode's equivalent spellings. An n-gram's hash
is built from the polynomial hashes of its tokens, which prefix sums give for all tokens at once (Karp and Rabin 1987).
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported.)
from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Unit = Literal["words", "characters"]
Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_STEP = np.uint64(0xD6E8FEB86659FD93)
_SPACE = 0x20


def normalized(texts: pa.Array) -> pa.Array:
    """Lower case, NFKC, and one space for whatever is neither a letter, a mark nor a digit."""
    plain = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    return pc.utf8_trim(pc.replace_substring_regex(plain, pattern=r"[^\pL\pM\pN]+", replacement=" "), characters=" ")


def ngram_hashes(texts: pa.Array, n: int, unit: Unit = "words") -> tuple[Hashes, Offsets]:
    """Hashes of every text's n-grams in reading order, repeats included: text ``i`` has ``[offsets[i]:offsets[i+1]]``.

    A text of fewer than ``n`` tokens, but not of none, has one n-gram: all of it.
    """
    tokens, offsets = _token_hashes(normalized(texts), unit)
    lengths = np.diff(offsets)
    counts = np.where(lengths > 0, np.maximum(lengths - n + 1, 1), 0)
    ends = np.repeat(offsets[1:], counts)
    ngram_offsets = np.concatenate([[0], np.cumsum(counts)])
    starts = np.arange(len(ends)) - np.repeat(ngram_offsets[:-1] - offsets[:-1], counts)
    hashes = tokens[starts]
    for further in range(1, n):
        at = starts + further
        inside = at < ends
        hashes = np.where(inside, hashes * _STEP + tokens[np.where(inside, at, 0)], hashes)
    return mixed(hashes), ngram_offsets


def mixed(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers that spreads every input bit over all output bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _token_hashes(texts: pa.Array, unit: Unit) -> tuple[Hashes, Offsets]:
    """One hash a token, and where each text's tokens begin."""
    data, bounds = _utf8(texts)
    starts, ends = _words(data, bounds) if unit == "words" else _characters(data)
    powers = np.cumprod(np.full(len(data) + 1, _BASE)) * _INVERSE
    prefix = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[:-1], out=prefix[1:])
    inverses = np.cumprod(np.full(len(data) + 1, _INVERSE)) * _BASE
    hashes = (prefix[ends] - prefix[starts]) * inverses[starts]
    return mixed(hashes), np.searchsorted(starts, bounds)


def _utf8(texts: pa.Array) -> tuple[NDArray[np.uint8], Offsets]:
    """All texts' bytes in one row, and where each begins."""
    wide = pa.concat_arrays([pc.fill_null(texts, "").cast(pa.large_string())])
    _, offsets, data = wide.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(wide) + 1, wide.offset * 8) if len(wide) else np.zeros(1, np.int64)
    return np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]], bounds - bounds[0]


def _words(data: NDArray[np.uint8], bounds: Offsets) -> tuple[Offsets, Offsets]:
    letter = data != _SPACE
    begins, stops = letter.copy(), letter.copy()
    begins[1:] &= ~letter[:-1]
    stops[:-1] &= ~letter[1:]
    inner = bounds[(bounds > 0) & (bounds < len(data))]  # a text ends where the next begins, with no space between
    begins[inner] = letter[inner]
    stops[inner - 1] = letter[inner - 1]
    return np.flatnonzero(begins), np.flatnonzero(stops) + 1


def _characters(data: NDArray[np.uint8]) -> tuple[Offsets, Offsets]:
    starts = np.flatnonzero((data & 0xC0) != 0x80)  # the other bytes continue a character
    return starts, np.append(starts[1:], len(data)) if len(starts) else starts
