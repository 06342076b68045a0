"""Repeated content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

from rebus.data.curators.base import KEEP, Judgement
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class ExactDedupConfig:
    """What must be equal, byte for byte, for a sample to be a repeat."""

    by: Literal["text-and-media", "text", "media"] = "text-and-media"


@register("curator", "exact-dedup", config=ExactDedupConfig)
class ExactDedup:
    """Drops a sample whose texts and media an earlier one has; the first stays."""

    reads: ClassVar[Sequence[str]] = ("id", "text_sha256", "media_sha256")
    adds: ClassVar[Mapping[str, pa.DataType]] = {}

    def __init__(self, config: ExactDedupConfig) -> None:
        self._by = config.by
        self._first: dict[bytes, str] = {}

    def judge(self, batch: pa.RecordBatch) -> Judgement:
        """A row without media never repeats by media."""
        ids, texts, media = (batch.column(name).to_pylist() for name in self.reads)
        reasons = [self._judge(i, self._key(t, m)) for i, t, m in zip(ids, texts, media, strict=True)]
        return Judgement(reasons)

    def _judge(self, identifier: str, key: bytes | None) -> str:
        if key is None:
            return KEEP
        first = self._first.setdefault(key, identifier)
        return KEEP if first == identifier else f"repeats {first}"

    def _key(self, text: str, media: Sequence[str]) -> bytes | None:
        if self._by == "media" and not media:
            return None
        parts = {"text": [text], "media": media, "text-and-media": [text, *media]}[self._by]
        return hashlib.sha256("/".join(parts).encode()).digest()[:16]
