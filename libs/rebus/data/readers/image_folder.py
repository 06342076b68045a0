"""Captioned pictures: a folder of images and a table (CSV, TSV or JSONL) that captions them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rebus.data.readers.base import (
    Draft,
    DraftingReader,
    Location,
    Quarantined,
    SourceSettings,
    clean_text,
    each_draft,
    made_sample,
)
from rebus.data.readers.delimited import check_header, delimited_rows
from rebus.data.readers.files import check_inside, json_lines
from rebus.data.readers.pictures import Pictures
from rebus.data.sample import Sample, Segment
from rebus.errors import invalid
from rebus.registry import register

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_DELIMITERS, ".jsonl")


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
        self._pictures = Pictures(self._root, config.limits)
        check_inside(self._root, self._table)
        if self._delimiter and isinstance(self._root, Path):  # a table elsewhere is looked at when the job runs
            check_header(self._root, self._table, self._delimiter, config.limits, config.columns)

    def drafts(self) -> Iterator[Draft | Quarantined]:
        limits = self._config.limits
        if self._delimiter:
            rows = delimited_rows(self._root, self._table, self._delimiter, limits, self._config.columns)
        else:
            rows = json_lines(self._root, self._table, limits)
        yield from each_draft(rows, self._sample)

    @property
    def _delimiter(self) -> str:
        return next((d for suffix, d in _DELIMITERS.items() if self._table.lower().endswith(suffix)), "")

    def _sample(self, where: str, values: dict[str, Any]) -> Sample:
        config, limits = self._config, self._config.limits
        path = clean_text(values.get(config.image_column), config.image_column, limits)
        caption = clean_text(values.get(config.caption_column), config.caption_column, limits)
        data = self._pictures.named(path)
        asked = [Segment(text=config.prompt, branch=1, task=config.task)] if config.prompt else []
        told = Segment(text=caption, role="assistant", loss=True, branch=1, task=config.task)
        return made_sample(
            config,
            self._source,
            self._optional(values, config.id_column) or where,
            [Segment(type="image", media=0), *asked, told],
            [data],
            metadata={"file": path, **{column: values.get(column) for column in config.metadata_columns}},
            family=self._optional(values, config.family_column),
            split=self._optional(values, config.split_column),
        )

    def _optional(self, values: dict[str, Any], column: str) -> str:
        return clean_text(values.get(column), column, self._config.limits) if column else ""
