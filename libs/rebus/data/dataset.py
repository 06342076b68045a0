"""Datasets of samples: write a version, derive one from another without rewriting media, read one at random.

Lance runs threads of its own and does not survive ``fork``: a reader refuses to work in a forked process. In
worker processes use ``spawn`` or ``forkserver`` and open the version there (readers pickle as their name).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError
from numpy.typing import NDArray

from rebus.data import staging, versions
from rebus.data.rows import SAMPLE_COLUMNS, from_table
from rebus.data.sample import Sample
from rebus.data.seen import SeenIds
from rebus.data.versions import ensure_dataset
from rebus.errors import AbortedError, FailedPreconditionError, invalid
from rebus.store import Store, documents
from rebus.v1.dataset_pb2 import DatasetVersion

__all__ = ["DatasetReader", "Patch", "derive_version", "ensure_dataset", "open_version", "write_version"]

_COMMIT_ATTEMPTS = 64
_PATCH_ROWS = 1024


@dataclass(frozen=True)
class Patch:
    """Values of a column for some rows: ``rows`` are positions in a version, ascending and unique."""

    rows: NDArray[np.int64]
    values: pa.Array


def write_version(
    store: Store,
    dataset: str,
    samples: Iterable[Sample],
    *,
    base: str = "",
    producer: str = "",
    batch_rows: int = staging.BATCH_ROWS,
) -> DatasetVersion:
    """Streams ``samples`` into the next version of ``dataset`` (``datasets/x``), made if it does not exist.

    The version holds these samples and no others; with ``base`` (a version of the dataset) they come behind its rows,
    which keep their numbers and are not rewritten. Memory holds one batch and what Lance buffers; the ids are on disk
    (``SeenIds``). Raises ``InvalidArgumentError`` for a malformed sample, a repeated id or no samples at all; then
    nothing is published.
    """
    ensure_dataset(store, dataset)
    extended = open_base(store, dataset, base) if base else None
    with closing(SeenIds()) as seen:
        if extended:
            seen.update(extended.ids())
        checked = _checked(samples, seen)
        lance_version = extended.version.lance_version if extended else None
        fragments = staging.stage(store, dataset, checked, base=lance_version, batch_rows=batch_rows)
    return publish_staged(store, dataset, fragments, base=base, producer=producer)


def open_base(store: Store, dataset: str, base: str) -> DatasetReader:
    """A reader of a version that is to be extended; ``InvalidArgumentError`` if it is one of another dataset."""
    if versions.dataset_of(base) != dataset:
        raise invalid("base", f"{base} is no version of {dataset}")
    return open_version(store, base)


def publish_staged(
    store: Store, dataset: str, fragments: Sequence[staging.Fragment], *, base: str = "", producer: str = ""
) -> DatasetVersion:
    """Publishes staged rows, behind those of ``base`` if there is one, as the next version of ``dataset``.

    ``InvalidArgumentError`` if there are none.
    """
    if not fragments:
        raise invalid("samples", f"{dataset}: there are no samples to write")
    extended = open_base(store, dataset, base).version.lance_version if base else None
    committed = staging.commit(store, dataset, fragments, base=extended)
    version = versions.counts(committed)
    version.parent, version.producer = base, producer
    return versions.publish(store, version, dataset, committed)


def derive_version(
    store: Store,
    parent: str,
    *,
    drop: Sequence[int] | np.ndarray = (),
    columns: Mapping[str, pa.Array] | None = None,
    patches: Mapping[str, Patch] | None = None,
    producer: str = "",
) -> DatasetVersion:
    """A new version out of ``parent`` (``datasets/x/versions/3``): rows left out, columns added, media shared.

    ``drop`` holds rows of the parent (positions, see ``DatasetReader.row_ids``); ``columns`` one value a row of
    the parent, dropped rows included; ``patches`` other values for some rows of existing columns, which alone are
    written anew. Raises ``InvalidArgumentError`` if no row would remain or a column exists.
    """
    reader = open_version(store, parent)
    gone = np.unique(reader.checked(drop))
    if len(gone) == reader.num_samples:
        raise invalid("drop", f"{parent}: no row would remain of {reader.num_samples}")
    _check_columns(reader, columns or {})
    _check_patches(reader, patches or {})
    dataset = versions.dataset_of(parent)
    for _ in range(_COMMIT_ATTEMPTS):
        try:
            with versions.reading(store, parent):
                derived = _derive(store, dataset, reader.version.lance_version, gone, columns or {}, patches or {})
                version = versions.counts(derived)
        except CommitConflictError:
            continue
        version.parent, version.producer = parent, producer
        return versions.publish(store, version, dataset, derived)
    raise AbortedError(f"{dataset}: other writers won {_COMMIT_ATTEMPTS} times in a row; try again")


def open_version(store: Store, name: str) -> DatasetReader:
    """A reader of a published version; ``NotFoundError`` if there is none, ``DataLossError`` if it was altered."""
    versions.dataset_of(name)
    version = documents.get(store, DatasetVersion, name)
    versions.check_published(store, version)
    return DatasetReader(store, version)


class DatasetReader:
    """One published version: its rows in a fixed order, ``0 .. num_samples - 1``, read in any. Thread-safe."""

    def __init__(self, store: Store, version: DatasetVersion) -> None:
        self.store = store
        self.version = version
        self._pid = os.getpid()
        self._lance: Any = None
        self._splits: np.ndarray | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.store.url, self.version.name)

    @property
    def num_samples(self) -> int:
        """Rows of all splits."""
        return self.version.num_samples

    @property
    def column_names(self) -> list[str]:
        """Every column, those that curation added included."""
        return list(self._open().schema.names)

    def row_ids(self, split: str = "") -> np.ndarray:
        """int64 ``[n]``: the rows of one split, ascending; of all splits if empty."""
        if not split:
            return np.arange(self.num_samples)
        if self._splits is None:
            self._splits = np.array(self.table(["split"]).column("split").to_pylist())
        return np.flatnonzero(self._splits == split)

    def take(self, rows: Sequence[int] | np.ndarray) -> list[Sample]:
        """The samples at ``rows``, in that order; repeats are fine, a row outside is ``InvalidArgumentError``."""
        return from_table(self.table(SAMPLE_COLUMNS, rows))

    def scan(self, split: str = "", *, batch_rows: int = 256) -> Iterator[Sample]:
        """Every sample of a split (or of all) in row order, ``batch_rows`` in memory at a time."""
        for batch in self.scan_columns(SAMPLE_COLUMNS, split, batch_rows=batch_rows):
            yield from from_table(batch)

    def table(self, columns: Sequence[str], rows: Sequence[int] | np.ndarray | None = None) -> pa.Table:
        """Some columns, of all rows or of ``rows`` in that order."""
        names = list(columns)
        with self._reading():
            if rows is None:
                return self._open().to_table(columns=names)
            return self._open().take(self.checked(rows).tolist(), columns=names)

    def scan_columns(
        self, columns: Sequence[str], split: str = "", *, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """Some columns in row order, batch by batch."""
        quoted = split.replace("'", "''")
        condition = f"split = '{quoted}'" if split else None
        with self._reading():
            scanner = self._open().scanner(
                columns=list(columns), filter=condition, batch_size=batch_rows, scan_in_order=True
            )
            batches = scanner.to_batches()
        while True:
            with self._reading():  # around the read alone: what the caller does with a batch is its own affair
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def ids(self) -> Iterator[str]:
        """The ids of all rows in order."""
        for batch in self.scan_columns(["id"]):
            yield from batch.column(0).to_pylist()

    def verify(self) -> list[str]:
        """Hashes every stored object of the version; one line a problem, empty when all is well."""
        return versions.verify(self.store, self.version.name)

    def checked(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """``rows`` as int64 ``[n]``; ``InvalidArgumentError`` if one is outside ``0 .. num_samples - 1``."""
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.num_samples):
            bad = wanted[(wanted < 0) | (wanted >= self.num_samples)][0]
            raise invalid("rows", f"row {bad} is outside the {self.num_samples} rows of {self.version.name}")
        return wanted

    def _reading(self) -> AbstractContextManager[None]:
        return versions.reading(self.store, self.version.name)

    def _open(self) -> Any:
        if os.getpid() != self._pid:
            raise FailedPreconditionError(
                f"{self.version.name} was opened before a fork, which Lance does not survive; "
                "start workers with spawn or forkserver, or use threads"
            )
        if self._lance is None:
            dataset = versions.dataset_of(self.version.name)
            self._lance = versions.open_lance(self.store, dataset, self.version.lance_version)
        return self._lance


def _reopen(url: str, name: str) -> DatasetReader:
    return open_version(Store.open(url), name)


def _checked(samples: Iterable[Sample], seen: SeenIds) -> Iterator[Sample]:
    for sample in samples:
        sample.validate()
        if not seen.add(sample.id):
            raise invalid(f"sample[{sample.id}].id", "is taken by an earlier sample")
        yield sample


def _check_columns(reader: DatasetReader, columns: Mapping[str, pa.Array]) -> None:
    existing = set(reader.column_names)
    for name, values in columns.items():
        if name in existing:
            raise invalid(f"columns.{name}", f"{reader.version.name} has a column of that name")
        if len(values) != reader.num_samples:
            raise invalid(f"columns.{name}", f"holds {len(values)} values for {reader.num_samples} rows")


def _check_patches(reader: DatasetReader, patches: Mapping[str, Patch]) -> None:
    for name, patch in patches.items():
        if name not in reader.column_names or name in ("id", "media"):
            raise invalid(f"patches.{name}", f"is no column of {reader.version.name} that may change")
        reader.checked(patch.rows)


def _derive(
    store: Store,
    dataset: str,
    base: int,
    gone: np.ndarray,
    columns: Mapping[str, pa.Array],
    patches: Mapping[str, Patch],
) -> Any:
    """Restores Lance version ``base`` as the newest, then adds, changes and deletes on top of it.

    Whatever another writer commits in between (an overwrite, or the restoration that its own derivation starts
    with) is one that Lance does not merge with ours: it raises ``CommitConflictError``, and the caller starts over.
    What was committed so far is never published.
    """
    options = store.lance_options
    current = versions.restore(store, dataset, base)
    if columns:
        current.add_columns(pa.table(dict(columns)).to_reader())
    if patches:
        _patch(current, patches, options)
    if not len(gone):
        return current
    row_ids = current.to_table(columns=["id"], with_row_id=True).column("_rowid").to_numpy()[gone]
    kept, emptied = [], []
    for fragment in current.get_fragments():
        own = row_ids[row_ids >> 32 == fragment.fragment_id]  # a row id is its fragment's number, then its place there
        if not len(own):
            continue
        changed = fragment.delete(_these(own))
        emptied.append(fragment.fragment_id) if changed is None else kept.append(changed)
    operation = lance.LanceOperation.Delete(kept, emptied, _these(row_ids))
    return lance.LanceDataset.commit(
        current.uri, operation, read_version=current.version, max_retries=0, storage_options=options
    )


def _these(row_ids: np.ndarray) -> str:
    return f"_rowid IN ({', '.join(map(str, row_ids))})"


def _patch(current: Any, patches: Mapping[str, Patch], options: Any) -> None:
    """Replaces columns by new ones that hold the patched values; the old ones stay in their files, unread."""
    names = list(patches)
    before = lance.dataset(current.uri, version=current.version, storage_options=options)
    scanner = before.scanner(columns=names, batch_size=_PATCH_ROWS, scan_in_order=True)
    current.drop_columns(names)
    current.add_columns(pa.RecordBatchReader.from_batches(scanner.projected_schema, _patched(scanner, patches)))


def _patched(scanner: Any, patches: Mapping[str, Patch]) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in scanner.to_batches():
        end = start + batch.num_rows
        columns = []
        for name in batch.schema.names:
            patch = patches[name]
            low, high = np.searchsorted(patch.rows, [start, end])
            take = np.arange(batch.num_rows)
            take[patch.rows[low:high] - start] = batch.num_rows + np.arange(high - low)
            values = pa.concat_arrays([batch.column(name), patch.values.slice(low, high - low)])
            columns.append(values.take(pa.array(take)))
        yield pa.RecordBatch.from_arrays(columns, schema=batch.schema)
        start = end
