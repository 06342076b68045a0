"""Too little or too much text."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class TextLengthConfig:
    """Bounds on the characters of all texts of a sample together, both inclusive."""

    min_chars: int = 1
    max_chars: int = 100_000

    def __post_init__(self) -> None:
        if not 0 <= self.min_chars <= self.max_chars:
            raise ValueError(f"need 0 <= min_chars={self.min_chars} <= max_chars={self.max_chars}")


@register("curator", "text-length", config=TextLengthConfig)
class TextLength(Curator):
    """Drops samples with too few or too many characters of text."""

    reads = ("num_chars",)

    def __init__(self, config: TextLengthConfig) -> None:
        self._config = config

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Compares each row's ``num_chars`` with the bounds."""
        return Judgement([self._judge(length) for length in observed.column("num_chars").to_pylist()])

    def _judge(self, length: int) -> str:
        if length < self._config.min_chars:
            return f"{length} characters of text, fewer than {self._config.min_chars}"
        if length > self._config.max_chars:
            return f"{length} characters of text, more than {self._config.max_chars}"
        return KEEP
