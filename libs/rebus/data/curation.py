"""Curation: a chain of curators over one version, giving the next version and a reason for every row left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rebus import registry
from rebus.data.curators.base import Curator
from rebus.data.dataset import DatasetReader, derive_version, open_version
from rebus.store import Store
from rebus.v1.dataset_pb2 import DatasetVersion

_BATCH_ROWS = 512


@dataclass(frozen=True)
class Dropped:
    """A row that a curator left out."""

    row: int  # position in the parent version
    sample_id: str
    curator: str
    reason: str


@dataclass(frozen=True)
class Curated:
    """The version that curation made, and the rows of its parent that it lacks, in row order."""

    version: DatasetVersion
    dropped: Sequence[Dropped]


def curate(
    store: Store,
    version: str,
    curators: Sequence[Mapping[str, Any]],
    *,
    producer: str = "",
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Curated:
    """Runs curators (``{"name": "text-length", "min_chars": 8}``) over ``version`` in one pass; media stay shared.

    Later curators see only what earlier ones kept. ``on_rows(done, total)`` is called after every batch and may
    raise to stop; nothing is published then. ``InvalidArgumentError`` if no row would remain.
    """
    reader = open_version(store, version)
    dropped, columns = judge_rows(reader, curators, on_rows=on_rows)
    return Curated(publish(store, reader, dropped, columns, producer=producer), dropped)


def publish(
    store: Store,
    reader: DatasetReader,
    dropped: Sequence[Dropped],
    columns: Mapping[str, pa.Array],
    *,
    producer: str = "",
) -> DatasetVersion:
    """The version that a judgement leads to. A column that an earlier curation measured is left as it is."""
    existing = set(reader.column_names)
    return derive_version(
        store,
        reader.version.name,
        drop=[row.row for row in dropped],
        columns={name: values for name, values in columns.items() if name not in existing},
        producer=producer,
    )


def judge_rows(
    reader: DatasetReader,
    curators: Sequence[Mapping[str, Any]],
    *,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Dropped], dict[str, pa.Array]]:
    """The rows that would be dropped, and the columns that curators measured (null where they did not look)."""
    chain: list[tuple[str, Curator]] = [
        (spec["name"], registry.build("curator", spec, field=f"curators[{i}]")) for i, spec in enumerate(curators)
    ]
    types = {name: type_ for _, curator in chain for name, type_ in curator.adds.items()}
    measured: dict[str, list[Any]] = {name: [None] * reader.num_samples for name in types}
    wanted = sorted({"id", *(column for _, curator in chain for column in curator.reads)})
    dropped: list[Dropped] = []
    start = 0
    for batch in reader.scan_columns(wanted, batch_rows=_BATCH_ROWS):
        dropped += _judge_batch(batch, start, chain, measured)
        start += batch.num_rows
        on_rows(start, reader.num_samples)
    return dropped, {name: pa.array(measured[name], type_) for name, type_ in types.items()}


def _judge_batch(
    batch: pa.RecordBatch, start: int, chain: Sequence[tuple[str, Curator]], measured: dict[str, list[Any]]
) -> list[Dropped]:
    dropped: list[Dropped] = []
    rows = np.arange(start, start + batch.num_rows)
    for name, curator in chain:
        judgement = curator.judge(batch)
        for column, values in judgement.values.items():
            for row, value in zip(rows, values, strict=True):
                measured[column][row] = value
        kept = np.array([not reason for reason in judgement.reasons], dtype=bool)
        ids = batch.column("id")
        for at in np.flatnonzero(~kept).tolist():
            dropped.append(Dropped(int(rows[at]), ids[at].as_py(), name, judgement.reasons[at]))
        batch, rows = batch.filter(pa.array(kept)), rows[kept]
    return sorted(dropped, key=lambda row: row.row)
