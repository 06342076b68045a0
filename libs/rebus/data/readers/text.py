"""Plain text: ``.txt`` files and JSONL files with a text field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rebus.data.readers.base import Location, Quarantined, SourceSettings, attempt, clean_text, content_key
from rebus.data.readers.files import json_lines, list_files, open_inside, read_inside
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError, NotFoundError
from rebus.registry import register

_SUFFIXES = (".txt", ".jsonl")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True, kw_only=True)
class TextConfig(SourceSettings):
    """Which files, and what makes one sample of them."""

    # Files inside the folder; empty: every .txt and .jsonl file below it. A URI that names a file reads that one.
    files: list[str] = field(default_factory=list)
    # What of a .txt file is one sample. A paragraph ends at a blank line.
    unit: Literal["file", "paragraph", "line"] = "paragraph"
    # The field of a JSONL line that holds its text.
    text_field: str = "text"


@register("reader", "text", config=TextConfig)
class TextReader:
    """Plain text: .txt files by paragraph, line or whole, and JSONL files."""

    def __init__(self, config: TextConfig, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._files = [location.file] if location.file else config.files
        self._source = config.source or location.label
        for name in self._files:
            with open_inside(self._root, name):  # a missing file shows before the job starts
                pass

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        for name in self._files or list_files(self._root, _SUFFIXES):
            if isinstance(name, Quarantined):
                yield name
            elif name.lower().endswith(".jsonl"):
                yield from self._json_lines(name)
            else:
                yield from self._plain(name)

    def _plain(self, name: str) -> Iterator[Sample | Quarantined]:
        try:
            text = read_inside(self._root, name, max_bytes=self._config.limits.max_file_bytes).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            yield Quarantined(name, f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}")
            return
        except (InvalidArgumentError, NotFoundError) as error:
            yield Quarantined(name, str(error))
            return
        for line, unit in _units(text.replace("\r\n", "\n"), self._config.unit):
            yield self._attempt(f"{name}:{line}" if line else name, unit)

    def _json_lines(self, name: str) -> Iterator[Sample | Quarantined]:
        for entry in json_lines(self._root, name, self._config.limits):
            if isinstance(entry, Quarantined):
                yield entry
            else:
                where, values = entry
                yield self._attempt(where, values.get(self._config.text_field))

    def _attempt(self, where: str, value: Any) -> Sample | Quarantined:
        return attempt(where, lambda: self._sample(where, value))

    def _sample(self, where: str, value: Any) -> Sample:
        text = clean_text(value, self._config.text_field, self._config.limits)
        family = content_key(text.encode())  # repeats of a text stay in one split
        return Sample(
            id=f"{self._source}/{where}",
            family=f"{self._source}/{family}",
            split=self._config.splits.split_of(family),
            segments=[Segment(text=text, role="assistant", loss=True, task="text")],
            source=self._source,
            license=self._config.license,
        )


def _units(text: str, unit: str) -> Iterator[tuple[int, str]]:
    """``(first line, text)`` of each unit that is not blank; a whole file has no line (0) and may be blank."""
    if unit == "file":
        yield 0, text
    elif unit == "line":
        yield from ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    else:
        start, line = 0, 1
        for end in [*_BLANK_LINE.finditer(text), None]:
            piece = text[start : end.start() if end else len(text)]
            if piece.strip():
                lead = piece[: len(piece) - len(piece.lstrip())]
                yield line + lead.count("\n"), piece
            if end:
                line += text.count("\n", start, end.end())
                start = end.end()
