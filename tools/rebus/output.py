"""Tables for people, JSON for programs, and remarks on stderr so that stdout stays clean for pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_PIPE_WIDTH = 10_000


class Format(StrEnum):
    """How a command prints what it found."""

    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--format", "-f", help="Print a table for people or JSON for programs.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="Print at most this many.")]


def stdout() -> Console:
    """The console of results. A pipe gets lines as long as they need to be, so that no name is cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def stderr() -> Console:
    """The console of remarks, progress and errors."""
    return Console(stderr=True, highlight=False)


def say(text: str, *, style: str = "") -> None:
    """One remark on stderr; never wrapped, so that one error stays one line."""
    stderr().print(escape(text), style=style, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; columns that hold only numbers stand to the right."""
    texts = [[_text(cell) for cell in row] for row in rows]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for at, column in enumerate(columns):
        cells = [row[at] for row in texts if row[at]]
        justify = "right" if cells and all(map(_is_number, cells)) else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in texts:
        table.add_row(*map(escape, row))
    _print(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """One resource: a line a field, empty fields left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        if text := _text(value):
            table.add_row(escape(name), escape(text))
    _print(table)


def _print(table: Table) -> None:
    """Without the blanks that pad the last column."""
    console = stdout()
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        typer.echo(line.rstrip())


def print_json(value: Any) -> None:
    """JSON on stdout; proto messages become canonical proto JSON with the fields' own names."""
    json.dump(_plain(value), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def ago(time: Timestamp) -> str:
    """How long ago something happened: ``5m``."""
    if not time.seconds:
        return ""
    return duration((datetime.now(UTC) - time.ToDatetime(tzinfo=UTC)).total_seconds())


def duration(seconds: float) -> str:
    """``48s``, ``5m``, ``3h``, ``2d``: the largest unit that fits."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def size(num_bytes: float) -> str:
    """``512 B``, ``3.4 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return json_format.MessageToDict(
            value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).removeprefix("-").removesuffix("%").isdigit()
