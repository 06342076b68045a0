"""Repeated content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from rebus.data.curators.base import Curator, Judgement, keep_first
from rebus.data.curators.columns import fixed_bytes
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class ExactDedupConfig:
    """What must be equal, byte for byte, for a sample to be a repeat."""

    by: Literal["text-and-media", "text", "media"] = "text-and-media"


@register("curator", "exact-dedup", config=ExactDedupConfig)
class ExactDedup(Curator):
    """Drops a sample whose texts and media an earlier one has; the first stays."""

    reads = ("id", "text_sha256", "media_sha256")
    whole = True

    def __init__(self, config: ExactDedupConfig) -> None:
        self._by = config.by

    def observe(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Half a SHA-256 of what must be equal."""
        ids, texts, media = (batch.column(name).to_pylist() for name in self.reads)
        keys = [self._key(*row) for row in zip(ids, texts, media, strict=True)]
        return pa.record_batch({"id": batch.column("id"), "key": pa.array(keys, pa.binary(16))})

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Rows with equal keys repeat the first of them."""
        keys = fixed_bytes(observed.column("key")).view(np.uint64)
        _, first, member = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        return Judgement(keep_first(observed.column("id").to_pylist(), first[member], "repeats"))

    def _key(self, identifier: str, text: str, media: Sequence[str]) -> bytes:
        """A row without media never repeats by media: its key is its own."""
        if self._by == "media" and not media:
            parts: Sequence[str] = ["id", identifier]
        else:
            parts = {"text": [text], "media": media, "text-and-media": [text, *media]}[self._by]
        return hashlib.sha256("/".join(parts).encode()).digest()[:16]
