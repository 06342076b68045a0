"""Rows of Parquet and Arrow files, one bounded batch in memory at a time.

Nothing that a file says of itself is believed: Arrow files are validated before a value is touched, lists are
counted before they become Python objects, and damage takes with it a row group or the rest of a stream, never what
came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rebus.data.readers.base import Quarantined, ReaderLimits, Root
from rebus.data.readers.files import open_inside
from rebus.errors import InvalidArgumentError, invalid

SUFFIXES = (".parquet", ".arrow")
_BATCH_BYTES = 32 << 20
_MAX_BATCH_ROWS = 1024
_READ_AHEAD = 1 << 20
# Names and statistics of a footer, in bytes and entries.
_MAX_FOOTER_STRING = 16 << 20
_MAX_FOOTER_ENTRIES = 1_000_000
# What pyarrow raises on damaged input.
_DAMAGE = (pa.ArrowException, OSError, MemoryError, ValueError, KeyError, OverflowError)
Row = tuple[str, dict[str, Any]]


def table_rows(root: Root, name: str, columns: Sequence[str], limits: ReaderLimits) -> Iterator[Row | Quarantined]:
    """``(location, row)`` with the values of ``columns`` for each row of a file, in order.

    ``InvalidArgumentError`` for a file that cannot be opened or lacks a column.
    """
    with open_inside(root, name, max_bytes=limits.max_file_bytes) as file:
        batches = _arrow if name.lower().endswith(".arrow") else _parquet
        number = 0
        for batch in batches(file, name, columns, limits):
            if isinstance(batch, Quarantined):
                yield batch
                continue
            for row in range(batch.num_rows):
                yield _row(batch, row, f"{name}[{number}]", columns, limits)
                number += 1


def _parquet(file: BinaryIO, name: str, columns: Sequence[str], limits: ReaderLimits) -> Iterator[Any]:
    try:
        parquet = pq.ParquetFile(
            file,
            buffer_size=_READ_AHEAD,  # pages one by one instead of whole column chunks
            pre_buffer=False,
            thrift_string_size_limit=_MAX_FOOTER_STRING,
            thrift_container_size_limit=_MAX_FOOTER_ENTRIES,
            page_checksum_verification=True,
        )
        schema = parquet.schema_arrow
    except _DAMAGE as error:
        raise _damaged(name, "Parquet", error) from None
    _check_columns(name, schema, columns)
    for index in range(parquet.num_row_groups):
        where = f"{name}: row group {index}"
        try:
            group = parquet.metadata.row_group(index)
            largest = max((group.column(i).total_uncompressed_size for i in range(group.num_columns)), default=0)
            if not 0 <= largest <= limits.max_chunk_bytes:
                yield Quarantined(
                    where, f"a column of {largest} bytes, more than the limit of {limits.max_chunk_bytes}"
                )
                continue
            a_row = max(1, group.total_byte_size // max(1, group.num_rows))
            rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // a_row))
            yield from parquet.iter_batches(rows, row_groups=[index], columns=list(columns), use_threads=False)
        except _DAMAGE as error:
            yield Quarantined(where, str(_damaged(name, "Parquet", error)))


def _arrow(file: BinaryIO, name: str, columns: Sequence[str], limits: ReaderLimits) -> Iterator[Any]:
    """Batches of an Arrow stream (what Hugging Face saves) or file."""
    try:
        magic = file.read(6)
        file.seek(0)
        opened = pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)
        schema = opened.schema
    except _DAMAGE as error:
        raise _damaged(name, "Arrow", error) from None
    _check_columns(name, schema, columns)
    try:
        for batch in _ipc_batches(opened):
            batch.validate(full=True)  # offsets that lead outside a buffer would be read otherwise
            if batch.nbytes > limits.max_chunk_bytes:
                yield Quarantined(name, f"a batch of more than the limit of {limits.max_chunk_bytes} bytes")
            else:
                selected = batch.select(list(columns))
                yield from (selected.slice(at, _MAX_BATCH_ROWS) for at in range(0, batch.num_rows, _MAX_BATCH_ROWS))
    except _DAMAGE as error:
        yield Quarantined(name, f"{_damaged(name, 'Arrow', error)}; what follows was not read")


def _ipc_batches(opened: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(opened, pa.ipc.RecordBatchFileReader):
        yield from (opened.get_batch(index) for index in range(opened.num_record_batches))
    else:
        yield from opened


def _check_columns(name: str, schema: pa.Schema, columns: Sequence[str]) -> None:
    missing = [column for column in columns if schema.names.count(column) != 1]
    if missing:
        known = ", ".join(schema.names)[:200] or "none"
        raise invalid("settings", f"{name} has no column {missing[0]!r}; its columns: {known}")


def _row(
    batch: pa.RecordBatch, row: int, where: str, columns: Sequence[str], limits: ReaderLimits
) -> Row | Quarantined:
    try:
        return where, {column: plain(batch.column(column)[row], column, limits) for column in columns}
    except InvalidArgumentError as error:
        return Quarantined(where, str(error))
    except (ValueError, OverflowError) as error:  # text that is no UTF-8, a time that Python has no words for
        return Quarantined(where, f"cannot be read: {' '.join(str(error).split())}")


def plain(value: Any, name: str, limits: ReaderLimits) -> Any:
    """An Arrow scalar as plain values, its lists counted first; what JSON has no word for becomes text."""
    if not value.is_valid:
        return None
    if isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        if len(value) > limits.max_segments:
            raise invalid(name, f"a list of {len(value)}, more than the limit of {limits.max_segments}")
        return [plain(item, name, limits) for item in value]
    if isinstance(value, pa.StructScalar):
        return {key: plain(item, name, limits) for key, item in value.items()}
    found = value.as_py()
    return found if isinstance(found, str | bytes | int | float) else str(found)


def _damaged(name: str, kind: str, error: BaseException) -> InvalidArgumentError:
    return invalid(name, f"corrupt or truncated {kind}: {' '.join(str(error).split())[:300] or type(error).__name__}")
