"""Captioned pictures: a folder of images and a table (CSV, TSV or JSONL) that captions them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rebus.data.readers.base import (
    Draft,
    DraftingReader,
    Location,
    Quarantined,
    SourceSettings,
    checked_image,
    clean_text,
    content_key,
)
from rebus.data.readers.files import json_lines, open_inside, read_inside, text_lines
from rebus.data.sample import Sample, Segment
from rebus.errors import invalid
from rebus.registry import register

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_DELIMITERS, ".jsonl")
Row = tuple[str, dict[str, Any]] | Quarantined


@dataclass(frozen=True, kw_only=True)
class ImageFolderConfig(SourceSettings):
    """Where the captions are and what the table's columns mean."""

    # The table, inside the folder; a source whose URI names a file reads that one.
    captions: str = "captions.csv"
    image_column: str = "image"
    caption_column: str = "caption"
    # Optional columns: a sample's id (default: its line), its family (default: its image), its split.
    id_column: str = ""
    family_column: str = ""
    split_column: str = ""
    # Columns kept as the sample's metadata.
    metadata_columns: list[str] = field(default_factory=list)
    # What the user says before the caption; nothing if empty.
    prompt: str = ""
    # What the caption segment is marked as.
    task: str = "caption"

    @property
    def columns(self) -> list[str]:
        """Every column that must be there."""
        named = [self.image_column, self.caption_column, self.id_column, self.family_column, self.split_column]
        return [column for column in (*named, *self.metadata_columns) if column]


@register("reader", "image-folder", config=ImageFolderConfig)
class ImageFolderReader(DraftingReader):
    """Captioned images: a folder and a CSV, TSV or JSONL table of image paths and captions."""

    def __init__(self, config: ImageFolderConfig, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._table = location.file or config.captions
        self._source = config.source or location.label
        if not self._table.lower().endswith(_SUFFIXES):
            raise invalid("settings.captions", f"{self._table}: expected a name ending in {', '.join(_SUFFIXES)}")
        with open_inside(self._root, self._table):  # a missing table shows before the job starts
            pass
        if self._delimiter:
            self._check_header()

    def drafts(self) -> Iterator[Draft | Quarantined]:
        for row in self._delimited() if self._delimiter else json_lines(self._root, self._table, self._config.limits):
            if isinstance(row, Quarantined):
                yield row
            else:
                where, values = row
                yield Draft(where, lambda where=where, values=values: self._sample(where, values))

    @property
    def _delimiter(self) -> str:
        return next((d for suffix, d in _DELIMITERS.items() if self._table.lower().endswith(suffix)), "")

    def _check_header(self) -> None:
        with open_inside(self._root, self._table) as file:
            _, line = next(text_lines(file, self._config.limits), (0, ""))
        header = next(csv.reader([line or ""], delimiter=self._delimiter), [])
        missing = [column for column in self._config.columns if column not in header]
        if missing:
            raise invalid(
                "settings",
                f"{self._table} has no column {missing[0]!r}; its columns: {', '.join(header)[:200] or 'none'}",
            )

    def _delimited(self) -> Iterator[Row]:
        """Rows of a CSV or TSV table, located by the line they end on."""
        limits = self._config.limits
        too_long: list[int] = []

        def lines() -> Iterator[str]:
            for number, line in text_lines(file, limits):
                if line is None:
                    too_long.append(number)
                yield line or ""

        with open_inside(self._root, self._table) as file:
            rows = csv.reader(lines(), delimiter=self._delimiter, strict=True)
            header: list[str] = []
            while True:
                row = _next_row(rows)
                where = f"{self._table}:{rows.line_num}"
                while too_long:
                    where_long = f"{self._table}:{too_long.pop(0)}"
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

    def _sample(self, where: str, values: dict[str, Any]) -> Sample:
        config, limits = self._config, self._config.limits
        path = clean_text(values.get(config.image_column), config.image_column, limits)
        caption = clean_text(values.get(config.caption_column), config.caption_column, limits)
        data = read_inside(self._root, path, max_bytes=limits.image.max_bytes)
        checked_image(data, path, limits)
        family = self._optional(values, config.family_column) or content_key(data)
        asked = [Segment(text=config.prompt, branch=1, task=config.task)] if config.prompt else []
        return Sample(
            id=f"{self._source}/{self._optional(values, config.id_column) or where}",
            family=f"{self._source}/{family}",
            split=self._optional(values, config.split_column) or config.splits.split_of(family),
            segments=[
                Segment(type="image", media=0),
                *asked,
                Segment(text=caption, role="assistant", loss=True, branch=1, task=config.task),
            ],
            media=[data],
            source=self._source,
            license=config.license,
            metadata={"file": path, **{column: values.get(column) for column in config.metadata_columns}},
        )

    def _optional(self, values: dict[str, Any], column: str) -> str:
        return clean_text(values.get(column), column, self._config.limits) if column else ""


def _next_row(rows: Iterator[list[str]]) -> list[str] | str | None:
    """The next row, the reason why it cannot be parsed, or None at the end."""
    try:
        return next(rows, None)
    except csv.Error as error:
        return f"not a valid row: {error}"
