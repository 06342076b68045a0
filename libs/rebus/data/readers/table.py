"""Tables (CSV, TSV or JSONL) row by row; a row that cannot be read is quarantined and the others stay."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rebus.data.readers.base import Quarantined, ReaderLimits
from rebus.data.readers.files import json_lines, open_inside, text_lines
from rebus.errors import invalid

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_DELIMITERS, ".jsonl")
# The row's place (``table.csv:7``) and its values by column.
Row = tuple[str, dict[str, Any]]


class Table:
    """The table ``name`` inside ``root``.

    Building it fails for a name of another kind (``InvalidArgumentError``), a file that is not there
    (``NotFoundError``), and a CSV or TSV header that lacks one of ``columns``; a JSONL file shows its columns row
    by row only.
    """

    def __init__(self, root: Path, name: str, columns: Sequence[str], limits: ReaderLimits) -> None:
        self._root, self._name, self._limits = root, name, limits
        if not name.lower().endswith(_SUFFIXES):
            raise invalid("settings.captions", f"{name}: expected a name ending in {', '.join(_SUFFIXES)}")
        self._delimiter = next((d for suffix, d in _DELIMITERS.items() if name.lower().endswith(suffix)), "")
        with open_inside(root, name):  # a missing table shows before the job starts
            pass
        if self._delimiter:
            self._check_header(columns)

    def __iter__(self) -> Iterator[Row | Quarantined]:
        return self._delimited() if self._delimiter else json_lines(self._root, self._name, self._limits)

    def _check_header(self, columns: Sequence[str]) -> None:
        with open_inside(self._root, self._name) as file:
            _, line = next(text_lines(file, self._limits), (0, ""))
        header = next(csv.reader([line or ""], delimiter=self._delimiter), [])
        missing = [column for column in columns if column not in header]
        if missing:
            raise invalid(
                "settings",
                f"{self._name} has no column {missing[0]!r}; its columns: {', '.join(header)[:200] or 'none'}",
            )

    def _delimited(self) -> Iterator[Row | Quarantined]:
        """Rows of a CSV or TSV table, located by the line they end on."""
        limits = self._limits
        too_long: list[int] = []

        def lines() -> Iterator[str]:
            for number, line in text_lines(file, limits):
                if line is None:
                    too_long.append(number)
                yield line or ""

        with open_inside(self._root, self._name) as file:
            rows = csv.reader(lines(), delimiter=self._delimiter, strict=True)
            header: list[str] = []
            while True:
                row = _next_row(rows)
                where = f"{self._name}:{rows.line_num}"
                while too_long:
                    where_long = f"{self._name}:{too_long.pop(0)}"
                    yield Quarantined(where_long, f"more than the limit of {limits.max_line_bytes} bytes in a line")
                if row is None:
                    return
                if isinstance(row, str):
                    yield Quarantined(where, row)
                elif row and not header:
                    header = row
                elif row and len(row) != len(header):
                    yield Quarantined(where, f"{len(row)} fields where the header has {len(header)}")
                elif row:
                    yield where, dict(zip(header, row, strict=True))


def _next_row(rows: Iterator[list[str]]) -> list[str] | str | None:
    """The next row, the reason why it cannot be parsed, or None at the end."""
    try:
        return next(rows, None)
    except csv.Error as error:
        return f"not a valid row: {error}"
