"""What a curator is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus.store import Store

KEEP = ""


@dataclass(frozen=True)
class Judgement:
    """What a curator says of some rows: for each why it is dropped (``KEEP`` if it stays), and what it measured."""

    reasons: Sequence[str]
    # One value a row for every column that the curator adds or rewrites; null in a rewritten one: stays as it was.
    values: Mapping[str, Sequence[Any] | pa.Array] = field(default_factory=dict)


class Curator:
    """Built as ``curator(config)`` for one curation.

    ``judge(observe(batch))`` is what it does to a batch of rows; both are functions of their argument alone, so that
    batches may be worked on anywhere and in any order. A curator of ``whole`` versions is given the observations of
    all rows at once: what it needs to see of a row, small enough that a million fit in memory.
    """

    # Columns that it reads: of ``rebus.data.rows.SCHEMA``, or added by earlier curators.
    reads: Sequence[str] = ()
    # Columns that it adds to the version, with their types.
    adds: Mapping[str, pa.DataType] = {}
    # Columns of ``rebus.data.rows.SCHEMA`` other than media that it changes.
    rewrites: Sequence[str] = ()
    # Whether ``judge`` needs to see all rows at once.
    whole: bool = False

    # Whether it keeps every row, so that one whose columns an earlier curation filled need not be looked at again.
    only_measures: bool = False

    def prepare(self, store: Store) -> None:
        """Reads what it needs from the store; called once, before the first row."""

    def observe(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What ``judge`` needs to know of these rows, one row each; by default the rows themselves."""
        return batch

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Judges rows, in row order; those that an earlier curator dropped are not among them."""
        raise NotImplementedError


def keep_first(ids: Sequence[str], first: NDArray[np.int64], what: str) -> list[str]:
    """Reasons that keep the first of each group and drop the others as ``what`` of it.

    ``first`` is int64 ``[N]``: for each row, the first row of its group.
    """
    told = [KEEP] * len(ids)
    for row in np.flatnonzero(first != np.arange(len(first))).tolist():
        told[row] = f"{what} {ids[first[row]]}"
    return told
