"""Texts that differ by a few words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rebus.data import duplicates, minhash
from rebus.data.curators.base import Curator, Judgement, keep_first
from rebus.data.curators.columns import fixed_bytes, from_bytes, joined_texts
from rebus.data.shingles import Unit, ngram_hashes
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class MinhashDedupConfig:
    """When two texts count as one: at least ``threshold`` of their n-grams, estimated, are common to both."""

    threshold: float = 0.6
    ngram: int = 3
    # Characters for languages that write no spaces.
    unit: Unit = "words"
    # More bands propose more pairs; more rows a band, fewer.
    bands: int = 25
    rows: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be above 0 and at most 1")
        if not (1 <= self.ngram <= 64 and 1 <= self.bands <= 256 and 1 <= self.rows <= 64):
            raise ValueError(f"ngram={self.ngram}, bands={self.bands} or rows={self.rows} is out of range")


@register("curator", "minhash-dedup", config=MinhashDedupConfig, paper="yi")
class MinhashDedup(Curator):
    """Drops all but the first of each group of texts that are nearly equal (MinHash-LSH); rows without text stay.

    Groups are the connected components of the pairs found: of A like B and B like C, A alone stays. Memory holds
    ``2 * bands * rows`` bytes a row and the ids.
    """

    reads = ("id", "segments")
    whole = True

    def __init__(self, config: MinhashDedupConfig) -> None:
        self._config = config
        self._bands = minhash.Bands(bands=config.bands, rows=config.rows, seed=config.seed)

    def observe(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The sketch of each row's text."""
        hashes, offsets = ngram_hashes(joined_texts(batch), self._config.ngram, self._config.unit)
        sketches = from_bytes(minhash.sketch(hashes, offsets, self._bands))
        return pa.record_batch({"id": batch.column("id"), "sketch": sketches, "full": pa.array(np.diff(offsets) > 0)})

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Groups the rows that have text."""
        full = np.flatnonzero(observed.column("full").to_numpy(zero_copy_only=False))
        sketches = fixed_bytes(observed.column("sketch")).view(np.uint16)
        if len(full) < len(sketches):
            sketches = sketches[full]
        pairs = full[minhash.similar_pairs(sketches, self._bands, self._config.threshold)]
        first = duplicates.firsts(observed.num_rows, pairs)
        return Judgement(keep_first(observed.column("id").to_pylist(), first, "nearly repeats the text of"))
