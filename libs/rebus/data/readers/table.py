"""Tables of any of the three kinds (CSV, TSV, JSONL), row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rebus.data.readers.base import Quarantined, ReaderLimits, Root
from rebus.data.readers.delimited import check_header, delimited_rows
from rebus.data.readers.files import check_inside, json_lines
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

    def __init__(self, root: Root, name: str, columns: Sequence[str], limits: ReaderLimits) -> None:
        self._root, self._name, self._columns, self._limits = root, name, columns, limits
        if not name.lower().endswith(_SUFFIXES):
            raise invalid("settings.captions", f"{name}: expected a name ending in {', '.join(_SUFFIXES)}")
        self._delimiter = next((d for suffix, d in _DELIMITERS.items() if name.lower().endswith(suffix)), "")
        check_inside(root, name)
        if self._delimiter and isinstance(root, Path):  # a table elsewhere is looked at when the job runs
            check_header(root, name, self._delimiter, limits, columns)

    def __iter__(self) -> Iterator[Row | Quarantined]:
        if self._delimiter:
            return delimited_rows(self._root, self._name, self._delimiter, self._limits, self._columns)
        return json_lines(self._root, self._name, self._limits)
