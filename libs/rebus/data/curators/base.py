"""What a curator is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import pyarrow as pa

KEEP = ""


@dataclass(frozen=True)
class Judgement:
    """What a curator says of a batch: for each row why it is dropped (``KEEP`` if it stays), and what it measured."""

    reasons: Sequence[str]
    # One value a row for every column that the curator adds.
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Curator(Protocol):
    """Built as ``curator(config)`` for one pass over a version; may keep state from batch to batch."""

    # Columns of ``rebus.data.rows.SCHEMA`` that it reads.
    reads: ClassVar[Sequence[str]]
    # Columns that it adds to the version, with their types.
    adds: ClassVar[Mapping[str, pa.DataType]]

    def judge(self, batch: pa.RecordBatch) -> Judgement:
        """Judges the next rows, in row order; rows that an earlier curator dropped are not among them."""
        ...
