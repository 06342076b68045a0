"""Rows to train on: a list in memory, or what a data binding leaves of a dataset version."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rebus.data.dataset import DatasetReader
from rebus.data.sample import Sample
from rebus.errors import invalid
from rebus.training.recipe import DataBinding


class SampleList:
    """Samples in memory."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self.rows = np.arange(len(samples))

    def __len__(self) -> int:
        return len(self._samples)

    def take(self, indices: Sequence[int] | NDArray[np.int64], /) -> list[Sample]:
        """The samples at ``indices``, in that order."""
        return [self._samples[index] for index in indices]


class BoundRows:
    """The rows of a dataset version that a binding names: one split, some sources, some tasks.

    Raises ``InvalidArgumentError`` naming ``field`` where no row is left.
    """

    def __init__(self, reader: DatasetReader, binding: DataBinding, *, field: str) -> None:
        rows = reader.row_ids(binding.split)
        if binding.sources:
            found = np.array(reader.table(["source"]).column("source").to_pylist())
            rows = rows[np.isin(found[rows], binding.sources)]
        if not len(rows):
            raise invalid(
                field,
                f"no row of {reader.version.name} has split {binding.split!r}"
                + (f" and a source of {binding.sources}" if binding.sources else "")
                + f"; splits: {dict(reader.version.splits)}, sources: {dict(reader.version.sources)}",
            )
        self._reader, self.rows = reader, rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Sequence[int] | NDArray[np.int64], /) -> list[Sample]:
        """The samples at ``indices`` of the bound rows, in that order; thread-safe."""
        return self._reader.take(self.rows[np.asarray(indices, dtype=np.int64)])
