"""Tables of text: CSV and TSV, row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rebus.data.readers.base import Quarantined, ReaderLimits, Root
from rebus.data.readers.files import open_inside, text_lines
from rebus.errors import invalid

# The csv module's own bound on a field belongs to the process. What bounds a row here is ``max_row_bytes``.
csv.field_size_limit(1 << 30)


class _RowTooLongError(Exception):
    """A row has grown too long; the next one begins at the next line."""


def check_header(root: Root, table: str, delimiter: str, limits: ReaderLimits, columns: Sequence[str]) -> None:
    """``InvalidArgumentError`` if the table lacks one of the columns."""
    with open_inside(root, table, max_bytes=limits.max_file_bytes) as file:
        _, line = next(text_lines(file, limits), (0, ""))
    _check_columns(table, next(csv.reader([line or ""], delimiter=delimiter), []), columns)


def delimited_rows(
    root: Root, table: str, delimiter: str, limits: ReaderLimits, columns: Sequence[str], *, max_row_bytes: int = 0
) -> Iterator[tuple[str, dict[str, Any]] | Quarantined]:
    """Rows of a CSV or TSV table, located by the line they end on; a row that cannot be parsed is quarantined.

    ``InvalidArgumentError`` if the table lacks one of ``columns``. A row is bounded by ``max_row_bytes``, by default
    what a line may have.
    """
    limits = replace(limits, max_line_bytes=max(max_row_bytes, limits.max_line_bytes))
    with open_inside(root, table, max_bytes=limits.max_file_bytes) as file:
        lines = _Lines(text_lines(file, limits), limits.max_line_bytes)
        header: list[str] = []
        for row in _parsed(lines, delimiter):
            where = f"{table}:{lines.number}"
            for number in lines.take_skipped():
                yield Quarantined(
                    f"{table}:{number}", f"more than the limit of {limits.max_line_bytes} bytes in a line"
                )
            if isinstance(row, str):
                yield Quarantined(where, row)
            elif row and not header:
                _check_columns(table, row, columns)
                header = row
            elif row and len(row) != len(header):
                yield Quarantined(where, f"{len(row)} fields where the header has {len(header)}")
            elif row:
                yield where, dict(zip(header, row, strict=True))


class _Lines:
    """Lines for a csv reader, which may stand in for each other: where one gives up, the next goes on."""

    def __init__(self, lines: Iterator[tuple[int, str | None]], max_row_bytes: int) -> None:
        self._lines = lines
        self._max_row_bytes = max_row_bytes
        self._held = 0
        self._skipped: list[int] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if line is None:
            self._skipped.append(self.number)
            return ""
        self._held += len(line)
        if self._held > self._max_row_bytes:
            raise _RowTooLongError
        return line

    def start_row(self) -> None:
        """What comes next belongs to a new row."""
        self._held = 0

    def take_skipped(self) -> list[int]:
        """The lines that were too long since the last call."""
        skipped, self._skipped = self._skipped, []
        return skipped


def _parsed(lines: _Lines, delimiter: str) -> Iterator[list[str] | str]:
    """Rows, or the reason why one cannot be parsed; an empty row at the end hands over what was skipped last."""
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.start_row()
        try:
            yield next(rows)
        except StopIteration:
            yield []
            return
        except csv.Error as error:
            yield f"not a valid row: {error}"
        except _RowTooLongError:
            yield "not a valid row: longer than a row may be; is a quote not closed?"
            rows = csv.reader(lines, delimiter=delimiter, strict=True)


def _check_columns(table: str, header: list[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if missing:
        raise invalid(
            "settings", f"{table} has no column {missing[0]!r}; its columns: {', '.join(header)[:200] or 'none'}"
        )
