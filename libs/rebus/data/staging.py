"""Rows that are durable before any version names them, so that a writer which dies goes on instead of starting over.

Staged rows are Lance data files of the dataset, each described by a small JSON document (Lance's own description of a
fragment) that the writer keeps until it commits them. ``gc`` takes them for left over once the job that wrote them
has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata, write_fragments

from rebus.data import versions
from rebus.data.rows import SCHEMA, to_batches
from rebus.data.sample import Sample
from rebus.errors import AbortedError, FailedPreconditionError, NotFoundError
from rebus.store import Store

# A described data file: JSON.
Fragment = Mapping[str, Any]

BATCH_ROWS = 1024
BATCH_BYTES = 32 << 20
_FILE_BYTES = 1 << 30
_COMMIT_ATTEMPTS = 64
_ID_ROWS = 8192


def stage(
    store: Store,
    dataset: str,
    samples: Iterable[Sample],
    *,
    base: int | None = None,
    batch_rows: int = BATCH_ROWS,
    batch_bytes: int = BATCH_BYTES,
) -> list[dict[str, Any]]:
    """Streams samples into data files of ``dataset`` that no version names yet; empty if there are none.

    ``base`` is the Lance version that ``commit`` will put them behind. Memory holds a batch of ``batch_rows`` samples
    (fewer once they hold ``batch_bytes``) and what Lance buffers. ``FailedPreconditionError`` if rows as they are
    written today lack columns in ``base``.
    """
    target = versions.ensure_lance(store, dataset)
    if base is not None:
        target = versions.open_lance(store, dataset, base)
        _check_columns(target, dataset)
    batches = to_batches(samples, batch_rows=batch_rows, batch_bytes=batch_bytes)
    mode = "overwrite" if base is None else "append"
    return [fragment.to_json() for fragment in _write(target, batches, mode, store)]


def commit(store: Store, dataset: str, fragments: Sequence[Fragment], *, base: int | None = None) -> Any:
    """Makes staged rows a Lance version: alone, or behind the rows of Lance version ``base``. Writers take turns.

    Columns that ``base`` has beyond ours are null in the new rows.
    """
    found = [FragmentMetadata.from_json(json.dumps(fragment)) for fragment in fragments]
    uri = store.lance_uri(f"{dataset}/{versions.LANCE_FOLDER}")
    options = store.lance_options
    for _ in range(_COMMIT_ATTEMPTS):
        try:
            if base is None:
                operation = lance.LanceOperation.Overwrite(SCHEMA, found)
                return lance.LanceDataset.commit(uri, operation, storage_options=options)
            restored = versions.restore(store, dataset, base)
            # No retries: Lance would take up another writer's rows that came in between.
            return lance.LanceDataset.commit(
                uri,
                lance.LanceOperation.Append(found),
                read_version=restored.version,
                max_retries=0,
                storage_options=options,
            )
        except CommitConflictError:
            continue
    raise AbortedError(f"{dataset}: other writers won {_COMMIT_ATTEMPTS} times in a row; try again")


def ids(store: Store, dataset: str, fragments: Iterable[Fragment]) -> Iterator[str]:
    """The ids of staged rows, in order."""
    for path in _files(fragments):
        uri = f"{store.lance_uri(f'{dataset}/{versions.LANCE_FOLDER}')}/data/{path}"
        reader = LanceFileReader(uri, storage_options=store.lance_options, columns=["id"])
        for batch in reader.read_all(batch_size=_ID_ROWS).to_batches():
            yield from batch.column(0).to_pylist()


def are_stored(store: Store, dataset: str, fragments: Iterable[Fragment]) -> bool:
    """Whether every staged file is there in its full size."""
    try:
        return all(
            store.info(_path(dataset, file["path"])).size == file["file_size_bytes"]
            for fragment in fragments
            for file in fragment["files"]
        )
    except NotFoundError:
        return False


def discard(store: Store, dataset: str, fragments: Iterable[Fragment]) -> None:
    """Removes staged files that will not be committed."""
    for path in _files(fragments):
        store.delete(_path(dataset, path))


def _files(fragments: Iterable[Fragment]) -> Iterator[str]:
    return (file["path"] for fragment in fragments for file in fragment["files"])


def _path(dataset: str, file: str) -> str:
    return f"{dataset}/{versions.LANCE_FOLDER}/data/{file}"


def _check_columns(target: Any, dataset: str) -> None:
    existing = {field.name: field.type for field in target.schema}
    if any(existing.get(field.name) != field.type for field in SCHEMA):
        raise FailedPreconditionError(f"{dataset}: its rows were written with other columns; ingest them anew")


def _write(
    target: Any, batches: Iterator[pa.RecordBatch], mode: Literal["overwrite", "append"], store: Store
) -> list[FragmentMetadata]:
    """Lance pulls the batches from native code, which turns an exception of theirs into a bare ``OSError``.

    It is kept here and raised as itself.
    """
    raised: list[Exception] = []

    def guarded() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:
            raised.append(error)
            raise

    stream = pa.RecordBatchReader.from_batches(SCHEMA, guarded())
    options = store.lance_options
    try:
        return list(write_fragments(stream, target, mode=mode, max_bytes_per_file=_FILE_BYTES, storage_options=options))
    except OSError:
        if raised:
            raise raised[0] from None
        raise
