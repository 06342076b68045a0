"""Curation: a chain of curators over one version, giving the next version and a reason for every row left out.

The chain is cut into stages after each curator of whole versions; a stage reads the version once. What is done to a
batch is a function of that batch (``judge_batch``); a ledger gathers what is said of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus import registry
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.dataset import DatasetReader, Patch, derive_version, open_version
from rebus.data.rows import SCHEMA
from rebus.errors import invalid
from rebus.store import Store
from rebus.v1.dataset_pb2 import DatasetVersion

# Rows that are judged together: few where media are read, since those may be large.
_BATCH_ROWS = 512
_BATCH_ROWS_WITHOUT_MEDIA = 4096
# Of the result of a batch: what a whole-version curator observed of the rows that are left.
_OBSERVED = "observed."
_KEPT = -1

Spec = Mapping[str, Any]
# What carries out a stage: given the reader, the stage and the rows (ascending), what ``judge_batch`` says of them, in
# batches of any order. ``run_stage`` does so in this process, ``curation_on_ray`` on many nodes.
Runner = Callable[[DatasetReader, "Stage", NDArray[np.int64]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class Dropped:
    """A row that a curator left out."""

    row: int  # position in the parent version
    sample_id: str
    curator: str
    reason: str


class DroppedRows(Sequence[Dropped]):
    """The rows that curators left out, in row order; kept as columns, since they may be most of a version."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> Dropped: ...
    @overload
    def __getitem__(self, index: slice) -> list[Dropped]: ...
    def __getitem__(self, index: int | slice) -> Dropped | list[Dropped]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        row = self.table.slice(range(len(self))[index], 1).to_pylist()[0]
        return Dropped(**row)

    def __iter__(self) -> Iterator[Dropped]:
        for batch in self.table.to_batches(max_chunksize=_BATCH_ROWS):
            yield from (Dropped(**row) for row in batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64 ``[n]``: positions in the parent version, ascending."""
        return self.table.column("row").to_numpy()

    def counts(self) -> dict[str, int]:
        """Rows by the curator that left them out."""
        return dict(Counter(self.table.column("curator").to_pylist()))


@dataclass(frozen=True)
class Judged:
    """What a chain of curators makes of a version."""

    dropped: DroppedRows
    # One value a row for every column that a curator measured; null where it did not look.
    columns: Mapping[str, pa.Array]
    # New values of existing columns, for the rows that a curator changed.
    patches: Mapping[str, Patch]


@dataclass(frozen=True)
class Curated:
    """The version that curation made, and the rows of its parent that it lacks, in row order."""

    version: DatasetVersion
    dropped: DroppedRows


@dataclass(frozen=True)
class Stage:
    """Neighbours in a chain that one reading serves: any number of curators, of which only the last may be ``whole``.

    ``known`` holds what earlier stages put into the columns that it reads.
    """

    specs: Sequence[Spec]
    # Number in the chain of the first of them.
    first: int
    stored_columns: Sequence[str]
    known: Mapping[str, Patch]

    def curators(self, store: Store) -> list[Curator]:
        """The stage's curators, ready to judge."""
        made = [_build(spec, self.first + at) for at, spec in enumerate(self.specs)]
        for curator in made:
            curator.prepare(store)
        return made

    @property
    def batch_rows(self) -> int:
        """How many rows are judged together."""
        return _BATCH_ROWS if "media" in self.stored_columns else max(_BATCH_ROWS_WITHOUT_MEDIA, _BATCH_ROWS)

    def with_known(self, batch: pa.RecordBatch, rows: NDArray[np.int64]) -> pa.RecordBatch:
        """``batch``, which holds ``rows`` (ascending) as they are stored, with what earlier stages made of them."""
        for name, patch in self.known.items():
            at = np.searchsorted(patch.rows, rows)
            found = np.flatnonzero((at < len(patch.rows)) & (patch.rows[np.minimum(at, len(patch.rows) - 1)] == rows))
            batch = _patched(batch, name, found, patch.values.take(pa.array(at[found])))
        return batch


def curate(
    store: Store,
    version: str,
    curators: Sequence[Spec],
    *,
    producer: str = "",
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    runner: Runner | None = None,
) -> Curated:
    """Runs curators (``{"name": "text-length", "min_chars": 8}``) over ``version``; media stay shared.

    Later curators see only what earlier ones kept. ``on_rows(done, total)`` is called after every batch and may
    raise to stop; nothing is published then. ``InvalidArgumentError`` if no row would remain.
    """
    reader = open_version(store, version)
    judged = judge_rows(reader, curators, on_rows=on_rows, runner=runner)
    return Curated(publish(store, reader, judged, producer=producer), judged.dropped)


def publish(store: Store, reader: DatasetReader, judged: Judged, *, producer: str = "") -> DatasetVersion:
    """The version that a judgement leads to.

    Of a column that an earlier curation measured, the rows that lack a value (they were added since) get theirs; the
    others keep what they have.
    """
    existing = set(reader.column_names)
    added = {name: values for name, values in judged.columns.items() if name not in existing}
    filled = {name: _filled(reader, name, values) for name, values in judged.columns.items() if name in existing}
    return derive_version(
        store,
        reader.version.name,
        drop=judged.dropped.rows,
        columns=added,
        patches={**judged.patches, **{name: patch for name, patch in filled.items() if len(patch.rows)}},
        producer=producer,
    )


def _filled(reader: DatasetReader, name: str, values: pa.Array) -> Patch:
    """Of ``values``, one a row, those of the rows in which a stored column holds null."""
    null = [batch.column(0).is_null() for batch in reader.scan_columns([name])]
    lacking = pa.concat_arrays([pa.array([], pa.bool_()), *null]).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(lacking & values.is_valid().to_numpy(zero_copy_only=False))
    return Patch(rows, values.take(pa.array(rows)))


def judge_rows(
    reader: DatasetReader,
    curators: Sequence[Spec],
    *,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    runner: Runner | None = None,
) -> Judged:
    """What the curators would drop, measure and rewrite; nothing is published."""
    run = runner or run_stage
    chain = [_build(spec, number) for number, spec in enumerate(curators)]
    _check_columns(reader, chain)
    ledger = _Ledger(reader, [spec["name"] for spec in curators], chain)
    cuts = _cut(chain)
    for number, (first, end) in enumerate(cuts):
        rows, done = ledger.kept(), 0
        stage = _stage(reader, curators[first:end], chain[first:end], first, ledger)
        observed = []
        for result in run(reader, stage, rows):
            observed.append(ledger.enter(result))
            done += result.num_rows
            on_rows(round((number + done / len(rows)) / len(cuts) * reader.num_samples), reader.num_samples)
        if chain[end - 1].whole and observed:
            ledger.enter_whole(end - 1, pa.Table.from_batches(observed))
    return ledger.judged()


def run_stage(reader: DatasetReader, stage: Stage, rows: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """Reads the version from front to back; yields what ``judge_batch`` says of ``rows``, batch by batch."""
    curators = stage.curators(reader.store)
    wanted = np.zeros(reader.num_samples, bool)
    wanted[rows] = True
    start = 0
    for batch in reader.scan_columns(stage.stored_columns, batch_rows=stage.batch_rows):
        mask = wanted[start : start + batch.num_rows]
        at = start + np.flatnonzero(mask)
        start += batch.num_rows
        if len(at):
            kept = batch if mask.all() else batch.filter(pa.array(mask))
            yield judge_batch(curators, stage.first, stage.with_known(kept, at), at)


def judge_batch(
    curators: Sequence[Curator], first: int, batch: pa.RecordBatch, rows: NDArray[np.int64]
) -> pa.RecordBatch:
    """What a stage says of some rows, one row each, in their order.

    Columns: ``row``; ``curator``, the number in the chain of the one that drops it, or -1; ``reason``; what was
    measured or rewritten; and, under names that begin with ``observed.``, what a whole-version curator needs to know.
    """
    count = len(rows)
    left = np.arange(count)
    by, reasons = np.full(count, _KEPT, np.int32), np.full(count, KEEP, object)
    said = pa.record_batch({"row": pa.array(rows)})
    for number, curator in enumerate(curators, start=first):
        observed = curator.observe(batch)
        if curator.whole:
            for name in observed.schema.names:
                said = _patched(said, f"{_OBSERVED}{name}", left, observed.column(name))
            break
        at = _unmeasured(curator, batch)
        judgement = curator.judge(observed if len(at) == batch.num_rows else observed.take(pa.array(at)))
        for name, values in _typed(curator, judgement).items():
            told = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
            values = values.take(pa.array(told))
            said = _patched(said, name, left[at[told]], values)
            batch = _patched(batch, name, at[told], values)
        gone = np.zeros(batch.num_rows, dtype=bool)
        gone[at] = [reason != KEEP for reason in judgement.reasons]
        if gone.any():
            by[left[gone]] = number
            reasons[left[gone]] = [reason for reason in judgement.reasons if reason != KEEP]
            batch, left = batch.filter(pa.array(~gone)), left[~gone]
    return said.append_column("curator", pa.array(by)).append_column("reason", pa.array(reasons, pa.string()))


def _unmeasured(curator: Curator, batch: pa.RecordBatch) -> NDArray[np.int64]:
    """The rows of a batch that a curator must see: those an earlier curation filled for it are spared, where it only
    measures."""
    if not curator.only_measures or not set(curator.adds) <= set(batch.schema.names):
        return np.arange(batch.num_rows)
    lacking = [batch.column(name).is_null().to_numpy(zero_copy_only=False) for name in curator.adds]
    return np.flatnonzero(np.any(lacking, axis=0))


class _Ledger:
    """Writes down what curators say of the rows of a version."""

    def __init__(self, reader: DatasetReader, names: Sequence[str], chain: Sequence[Curator]) -> None:
        self._reader = reader
        self._names = names
        self._chain = chain
        self._by = np.full(reader.num_samples, _KEPT, np.int32)
        self._reasons: list[tuple[NDArray[np.int64], pa.Array]] = []
        self._said: dict[str, list[tuple[NDArray[np.int64], pa.Array]]] = {}

    def kept(self) -> NDArray[np.int64]:
        """Rows that no curator has dropped so far."""
        return np.flatnonzero(self._by == _KEPT)

    def enter(self, result: pa.RecordBatch) -> pa.RecordBatch:
        """Enters what ``judge_batch`` says; returns what was observed of the rows that stay, with their numbers."""
        rows, by = (result.column(name).to_numpy() for name in ("row", "curator"))
        gone = by != _KEPT
        self._drop(rows[gone], by[gone], result.column("reason").filter(pa.array(gone)))
        observed = {"row": result.column("row")}
        for name in set(result.schema.names) - {"row", "curator", "reason"}:
            if name.startswith(_OBSERVED):
                observed[name.removeprefix(_OBSERVED)] = result.column(name)
            else:
                self._say(name, rows, result.column(name))
        return pa.record_batch(observed).filter(pa.array(~gone))

    def enter_whole(self, number: int, observed: pa.Table) -> None:
        """Lets a curator judge all rows, given its observations in any order, and enters what it says."""
        ordered = observed.sort_by("row").combine_chunks().to_batches()
        if not ordered:
            return
        rows = ordered[0].column("row").to_numpy()
        judgement = self._chain[number].judge(ordered[0])
        for name, values in _typed(self._chain[number], judgement).items():
            self._say(name, rows, values)
        gone = np.flatnonzero([reason != KEEP for reason in judgement.reasons])
        reasons = pa.array([reason for reason in judgement.reasons if reason != KEEP], pa.string())
        self._drop(rows[gone], np.full(len(gone), number, np.int32), reasons)

    def patch(self, name: str) -> Patch | None:
        """What has been said of a column so far; the last word on a row counts."""
        if name not in self._said:
            return None
        rows = np.concatenate([rows for rows, _ in self._said[name]])
        last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
        values = pa.concat_arrays([values for _, values in self._said[name]])
        return Patch(rows[last], values.take(pa.array(last)))

    def judged(self) -> Judged:
        """Everything, once all stages have run."""
        added = {name: type_ for curator in self._chain for name, type_ in curator.adds.items()}
        nothing = pa.record_batch({"row": pa.nulls(self._reader.num_samples)})
        columns = {}
        for name, type_ in added.items():
            patch = self.patch(name) or Patch(np.empty(0, np.int64), pa.array([], type_))
            columns[name] = _patched(nothing, name, patch.rows, patch.values).column(name)
        rewritten = sorted({name for curator in self._chain for name in curator.rewrites})
        patches = {name: patch for name in rewritten if (patch := self.patch(name))}
        return Judged(DroppedRows(self._dropped()), columns, patches)

    def _say(self, name: str, rows: NDArray[np.int64], values: pa.Array) -> None:
        told = values.is_valid()
        self._said.setdefault(name, []).append((rows[told.to_numpy(zero_copy_only=False)], values.filter(told)))

    def _drop(self, rows: NDArray[np.int64], by: NDArray[np.int32], reasons: pa.Array) -> None:
        self._by[rows] = by
        self._reasons.append((rows, reasons))

    def _dropped(self) -> pa.Table:
        rows = np.concatenate([rows for rows, _ in self._reasons] or [np.empty(0, np.int64)])
        reasons = pa.concat_arrays([pa.array([], pa.string()), *(reasons for _, reasons in self._reasons)])
        order = np.argsort(rows)
        names = pa.DictionaryArray.from_arrays(self._by[rows[order]], pa.array(list(self._names), pa.string()))
        ids = self._reader.table(["id"]).column("id").take(pa.array(rows[order]))
        return pa.table(
            {"row": rows[order], "sample_id": ids, "curator": names, "reason": reasons.take(pa.array(order))}
        )


def _build(spec: Spec, number: int) -> Curator:
    return registry.build("curator", spec, field=f"curators[{number}]")


def _cut(chain: Sequence[Curator]) -> list[tuple[int, int]]:
    """Stages of the chain as (first, end)."""
    ends = [at + 1 for at, curator in enumerate(chain) if curator.whole or at + 1 == len(chain)]
    return list(zip([0, *ends], ends, strict=False))


def _stage(
    reader: DatasetReader, specs: Sequence[Spec], members: Sequence[Curator], first: int, ledger: _Ledger
) -> Stage:
    measured = {name for curator in members if curator.only_measures for name in curator.adds}
    wanted = sorted({name for curator in members for name in curator.reads} | measured)
    stored = set(reader.column_names)
    known = {name: patch for name in wanted if (patch := ledger.patch(name))}
    return Stage(specs, first, sorted({"id", *(stored & set(wanted))}), known)


def _check_columns(reader: DatasetReader, chain: Sequence[Curator]) -> None:
    """Every column that a curator reads must be stored or added by an earlier one."""
    known = set(reader.column_names)
    for number, curator in enumerate(chain):
        for name in curator.reads:
            if name not in known:
                raise invalid(f"curators[{number}]", f"reads column {name!r}, which {reader.version.name} lacks")
        known |= set(curator.adds)


def _typed(curator: Curator, judgement: Judgement) -> dict[str, pa.Array]:
    types = {**curator.adds, **{name: SCHEMA.field(name).type for name in curator.rewrites}}
    return {
        name: values if isinstance(values, pa.Array) else pa.array(values, types[name])
        for name, values in judgement.values.items()
    }


def _patched(batch: pa.RecordBatch, name: str, at: NDArray[np.int64], values: pa.Array) -> pa.RecordBatch:
    """``batch`` with other values in some rows of a column; the column is made, null elsewhere, if there is none."""
    if name in batch.schema.names:
        old = batch.column(name)
        take = np.arange(batch.num_rows)
        take[at] = len(old) + np.arange(len(at))
        column = pa.concat_arrays([old, values]).take(pa.array(take))
        return batch.set_column(batch.schema.get_field_index(name), name, column)
    take = np.full(batch.num_rows, -1)
    take[at] = np.arange(len(at))
    return batch.append_column(name, values.take(pa.array(take, mask=take < 0)))
