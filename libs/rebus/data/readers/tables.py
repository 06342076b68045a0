"""Rows of Parquet and Arrow files, one bounded batch in memory at a time.

Nothing that a file says of itself is believed: Arrow files are validated before a value is touched, lists are
counted before they become Python objects, and damage takes with it a row group or the rest of a stream, never what
came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rebus.data.readers.arrow_messages import messages
from rebus.data.readers.base import Quarantined, ReaderLimits, Root
from rebus.data.readers.files import open_inside
from rebus.data.readers.parquet_pages import announced
from rebus.errors import InvalidArgumentError, invalid

SUFFIXES = (".parquet", ".arrow")
_ARROW_FILE = b"ARROW1\0\0"
_BATCH_BYTES = 32 << 20
_MAX_BATCH_ROWS = 1024
_READ_AHEAD = 1 << 20
# What a value takes in memory at least, however often one is repeated in a few bytes: its place and its levels.
_VALUE_BYTES = 8
# Names and statistics of a footer, in bytes and entries.
_MAX_FOOTER_STRING = 16 << 20
_MAX_FOOTER_ENTRIES = 1_000_000
# Levels of lists and structs in a cell, and values that there may be for each segment that a sample may have.
_MAX_NESTING = 32
_MAX_FIELDS = 32
_LISTS = (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar, pa.ListViewScalar, pa.LargeListViewScalar)
_WRAPPED = (pa.DictionaryScalar, pa.ExtensionScalar, pa.RunEndEncodedScalar, pa.UnionScalar)
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
        parquet = _opened(file)
        if repeated := _repeated(parquet.metadata, columns):
            parquet = _opened(file, metadata=parquet.metadata, read_dictionary=repeated)
        schema = parquet.schema_arrow
    except _DAMAGE as error:
        raise _damaged(name, "Parquet", error) from None
    _check_columns(name, schema, columns)
    for index in range(parquet.num_row_groups):
        where = f"{name}: row group {index}"
        try:
            group = parquet.metadata.row_group(index)
            a_row = _checked_group(file, group, columns, limits)
            rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // a_row))
            yield from parquet.iter_batches(rows, row_groups=[index], columns=list(columns), use_threads=False)
        except InvalidArgumentError as error:
            yield Quarantined(where, str(error))
        except _DAMAGE as error:
            yield Quarantined(where, str(_damaged(name, "Parquet", error)))


def _opened(file: BinaryIO, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(
        file,
        buffer_size=_READ_AHEAD,  # pages one by one instead of whole column chunks
        pre_buffer=False,
        thrift_string_size_limit=_MAX_FOOTER_STRING,
        thrift_container_size_limit=_MAX_FOOTER_ENTRIES,
        page_checksum_verification=True,
        **options,
    )


def _repeated(metadata: pq.FileMetaData, columns: Sequence[str]) -> list[str]:
    """Bytes and texts in lists that have dictionaries: a cell may repeat one value without end.

    They are kept as places in the dictionary until ``_Room`` has counted them; nothing else bounds a single row.
    """
    found = []
    for number in range(metadata.num_columns):
        leaf = metadata.schema.column(number)
        if leaf.max_repetition_level and leaf.physical_type == "BYTE_ARRAY" and leaf.path.split(".")[0] in columns:
            groups = (metadata.row_group(index).column(number) for index in range(metadata.num_row_groups))
            if any(column.has_dictionary_page for column in groups):
                found.append(leaf.path)
    return found


def _checked_group(file: BinaryIO, group: Any, columns: Sequence[str], limits: ReaderLimits) -> int:
    """The bytes that a row may take, were every value the longest of its dictionary.

    ``InvalidArgumentError`` if a column is larger than it may be, by the footer or by its pages.
    """
    a_row = max(1, group.total_byte_size // max(1, group.num_rows))
    for number in range(group.num_columns):
        column = group.column(number)
        sizes = [column.total_uncompressed_size]
        if column.path_in_schema.partition(".")[0] in columns:
            pages = announced(file, column)
            sizes += [pages.largest_bytes, _VALUE_BYTES * pages.num_values]
            a_row += pages.dictionary_bytes
        largest = max(sizes, key=abs)
        if not 0 <= largest <= limits.max_chunk_bytes:
            raise InvalidArgumentError(f"a column of {largest} bytes, more than the limit of {limits.max_chunk_bytes}")
    return a_row


def _arrow(file: BinaryIO, name: str, columns: Sequence[str], limits: ReaderLimits) -> Iterator[Any]:
    """Batches of an Arrow stream (what Hugging Face saves) or file, which is a stream with a table of contents."""
    file.seek(len(_ARROW_FILE) if file.read(len(_ARROW_FILE)) == _ARROW_FILE else 0)
    start = file.tell()
    num_batches, problem = _sound_batches(file, limits)
    file.seek(start)
    try:
        opened = pa.ipc.open_stream(file)
        schema = opened.schema
    except _DAMAGE as error:
        raise _damaged(name, "Arrow", error) from None
    _check_columns(name, schema, columns)
    try:
        for batch in islice(opened, num_batches):
            batch.validate(full=True)  # offsets that lead outside a buffer would be read otherwise
            selected = batch.select(list(columns))
            yield from (selected.slice(at, _MAX_BATCH_ROWS) for at in range(0, batch.num_rows, _MAX_BATCH_ROWS))
    except _DAMAGE as error:
        problem = str(_damaged(name, "Arrow", error))
    if problem:
        yield Quarantined(name, f"{problem}; what follows was not read")


def _sound_batches(file: BinaryIO, limits: ReaderLimits) -> tuple[int, str]:
    """How many batches come before one that is too large once it is unpacked, and what is wrong there, if anything."""
    count = 0
    kept: dict[int, int] = {}
    try:
        for message in messages(file):
            size = message.num_bytes
            if message.dictionary is not None:
                kept[message.dictionary] = size + (kept.get(message.dictionary, 0) if message.is_delta else 0)
                size = sum(kept.values())
            if size > limits.max_chunk_bytes:
                return count, f"a batch of more than the limit of {limits.max_chunk_bytes} bytes"
            count += message.is_batch
    except InvalidArgumentError as error:
        return count, f"corrupt or truncated Arrow: {error}"
    return count, ""


def _check_columns(name: str, schema: pa.Schema, columns: Sequence[str]) -> None:
    missing = [column for column in columns if schema.names.count(column) != 1]
    if missing:
        known = ", ".join(schema.names)[:200] or "none"
        raise invalid("settings", f"{name} has no column {missing[0]!r}; its columns: {known}")


def _row(
    batch: pa.RecordBatch, row: int, where: str, columns: Sequence[str], limits: ReaderLimits
) -> Row | Quarantined:
    try:
        room = _Room(limits)
        return where, {column: room.plain(batch.column(column)[row], column) for column in columns}
    except InvalidArgumentError as error:
        return Quarantined(where, str(error))
    except (ValueError, OverflowError) as error:  # text that is no UTF-8, a time that Python has no words for
        return Quarantined(where, f"cannot be read: {' '.join(str(error).split())}")


class _Room:
    """What the values of one row may still take: an Arrow file can repeat a value at no cost, memory cannot."""

    def __init__(self, limits: ReaderLimits) -> None:
        self._limits = limits
        self._values = limits.max_segments * _MAX_FIELDS
        self._bytes = limits.max_sample_bytes

    def plain(self, value: Any, name: str, depth: int = 0) -> Any:
        """An Arrow scalar as plain values, its lists counted first; what JSON has no word for becomes text."""
        self._values -= 1
        if self._values < 0 or depth > _MAX_NESTING:
            raise invalid(name, f"more than {self._limits.max_segments * _MAX_FIELDS} values or {_MAX_NESTING} levels")
        if not value.is_valid:
            return None
        if isinstance(value, _WRAPPED):
            return self.plain(value.value, name, depth + 1)
        if isinstance(value, _LISTS):
            items = value.values
            if len(items) > self._limits.max_segments:
                raise invalid(name, f"a list of {len(items)}, more than the limit of {self._limits.max_segments}")
            return [self.plain(item, name, depth + 1) for item in items]
        if isinstance(value, pa.StructScalar):
            return {key: self.plain(item, name, depth + 1) for key, item in value.items()}
        found = value.as_py()
        if isinstance(found, str | bytes):
            self._bytes -= len(found)
            if self._bytes < 0:
                raise invalid(name, "the values of one row are larger than a sample may be")
        return found if isinstance(found, str | bytes | int | float) else str(found)


def _damaged(name: str, kind: str, error: BaseException) -> InvalidArgumentError:
    return invalid(name, f"corrupt or truncated {kind}: {' '.join(str(error).split())[:300] or type(error).__name__}")
