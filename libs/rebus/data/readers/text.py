"""Plain text: ``.txt`` files and JSONL files with a text field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rebus.data.readers.base import (
    Location,
    Quarantined,
    ReaderLimits,
    SourceSettings,
    attempt,
    clean_text,
    each_row,
    made_sample,
)
from rebus.data.readers.files import check_inside, each_file, json_lines, list_files, open_inside, text_lines
from rebus.data.sample import Sample, Segment
from rebus.registry import register

_SUFFIXES = (".txt", ".jsonl")


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
            check_inside(self._root, name)

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        yield from each_file(self._files or list_files(self._root, _SUFFIXES), self._read)

    def _read(self, name: str) -> Iterator[Sample | Quarantined]:
        return self._json_lines(name) if name.lower().endswith(".jsonl") else self._plain(name)

    def _plain(self, name: str) -> Iterator[Sample | Quarantined]:
        limits = self._config.limits
        with open_inside(self._root, name, max_bytes=limits.max_file_bytes) as file:
            for line, text, broken in _units(text_lines(file, limits), self._config.unit, limits):
                where = name if self._config.unit == "file" else f"{name}:{line}"
                if broken:
                    yield Quarantined(where, broken)
                else:
                    yield attempt(where, lambda where=where, text=text: self._sample(where, text))

    def _json_lines(self, name: str) -> Iterator[Sample | Quarantined]:
        rows = json_lines(self._root, name, self._config.limits)
        return each_row(rows, lambda where, values: self._sample(where, values.get(self._config.text_field)))

    def _sample(self, where: str, value: Any) -> Sample:
        text = clean_text(value, self._config.text_field, self._config.limits)
        # Repeats of a text are one family, so that they stay in one split.
        return made_sample(
            self._config, self._source, where, [Segment(text=text, role="assistant", loss=True, task="text")]
        )


class _Unit:
    """Lines that become one text; no more of them are held than a text may have characters."""

    def __init__(self, limits: ReaderLimits) -> None:
        self._limits = limits
        self._clear()

    def _clear(self) -> None:
        self._first, self._lines, self._chars, self._broken = 0, list[str](), 0, ""

    def add(self, number: int, line: str | None) -> None:
        """One more line; None for one that is too long."""
        self._first = self._first or number
        if line is None:
            self._broken = f"more than the limit of {self._limits.max_line_bytes} bytes in a line"
            return
        self._chars += len(line)
        if self._chars > self._limits.max_text_chars + len(line) - len(line.rstrip()):
            self._broken = self._broken or f"more than the limit of {self._limits.max_text_chars} characters"
        if not self._broken:
            self._lines.append(line.replace("\r\n", "\n"))

    def take(self) -> Iterator[tuple[int, str, str]]:
        """``(first line, text, what is wrong with it)`` if there are lines, and begins anew."""
        if self._first:
            yield self._first, "".join(self._lines), self._broken
        self._clear()


def _units(lines: Iterable[tuple[int, str | None]], unit: str, limits: ReaderLimits) -> Iterator[tuple[int, str, str]]:
    """``(first line, text, what is wrong with it)`` of each unit that is not blank."""
    held = _Unit(limits)
    for number, line in lines:
        if unit == "file":
            held.add(number, line)
        elif line is not None and not line.strip():
            yield from held.take()
        else:
            held.add(number, line)
            if unit == "line":
                yield from held.take()
    yield from held.take()
