"""Folders of Parquet or Arrow files as Hugging Face saves them: columns of images, texts and conversations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
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
from rebus.data.readers.conversations import conversation_segments
from rebus.data.readers.files import check_inside, each_file, list_files
from rebus.data.readers.pictures import Pictures
from rebus.data.readers.tables import SUFFIXES, table_rows
from rebus.data.sample import Sample, Segment
from rebus.errors import invalid
from rebus.registry import register

_SPLIT_NAME = re.compile(r"(?:^|/)(train|validation|test)(?:-\d+-of-\d+\.|[./])")


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig(SourceSettings):
    """What the columns mean. Either what is told (``caption_column``) or a conversation must be named."""

    # Files inside the folder; empty: every .parquet and .arrow file below it. A URI that names a file reads that one.
    files: list[str] = field(default_factory=list)
    # Each cell an image (``{"bytes", "path"}``, bytes, a path or an address), a list of them, or null. May be empty.
    image_columns: list[str] = field(default_factory=lambda: ["image"])
    # What the assistant tells, and, if named, what the user asks.
    caption_column: str = ""
    prompt_column: str = ""
    # Turns, in any of the shapes of ``readers.conversations``.
    conversations_column: str = ""
    # Optional columns: a sample's id (default: its file and row), its family (default: its first image), its split.
    id_column: str = ""
    family_column: str = ""
    split_column: str = ""
    # Take the split from names like ``train-00000-of-00008.parquet`` and ``test/0.parquet``; other names are dealt.
    splits_from_names: bool = False
    # Columns kept as the sample's metadata.
    metadata_columns: list[str] = field(default_factory=list)
    # Folder inside the source's folder that image paths are relative to.
    image_root: str = ""
    # What the user says before every caption; nothing if empty.
    prompt: str = ""
    # What the segments are marked as.
    task: str = "caption"

    def __post_init__(self) -> None:
        if bool(self.caption_column) == bool(self.conversations_column):
            raise ValueError("set one of caption_column and conversations_column")
        if self.prompt_column and self.prompt:
            raise ValueError("set prompt or prompt_column, not both")

    @property
    def columns(self) -> list[str]:
        """Every column that must be there, each once."""
        told = [self.caption_column, self.prompt_column, self.conversations_column]
        named = [*self.image_columns, *told, self.id_column, self.family_column, self.split_column]
        return list(dict.fromkeys(column for column in (*named, *self.metadata_columns) if column))


@register("reader", "huggingface", config=HuggingFaceConfig)
class HuggingFaceReader(DraftingReader):
    """Hugging Face's Parquet and Arrow folders: images with captions, questions or conversations."""

    def __init__(self, config: HuggingFaceConfig, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._files = [location.file] if location.file else config.files
        self._source = config.source or location.label
        self._pictures = Pictures(self._root, config.limits, folder=config.image_root)
        for name in self._files:
            check_inside(self._root, name)

    def drafts(self) -> Iterator[Draft | Quarantined]:
        yield from each_file(self._files or list_files(self._root, SUFFIXES), self._read)

    def _read(self, name: str) -> Iterator[Draft | Quarantined]:
        found = _SPLIT_NAME.search(name) if self._config.splits_from_names else None
        split = found.group(1) if found else ""
        rows = table_rows(self._root, name, self._config.columns, self._config.limits)
        return each_draft(rows, lambda where, row: self._sample(where, row, split))

    def _sample(self, where: str, row: dict[str, Any], split: str) -> Sample:
        config = self._config
        media = self._images(row)
        if config.conversations_column:
            turns = row[config.conversations_column]
            segments = conversation_segments(turns, len(media), config.task, config.limits)
        else:
            segments = self._told(row, len(media))
        return made_sample(
            config,
            self._source,
            self._optional(row, config.id_column) or where,
            segments,
            media,
            metadata={column: row[column] for column in config.metadata_columns},
            family=self._optional(row, config.family_column),
            split=self._optional(row, config.split_column) or split,
        )

    def _images(self, row: dict[str, Any]) -> list[bytes]:
        held: list[bytes] = []
        limits = self._config.limits
        for column in self._config.image_columns:
            cell = row[column]
            cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
            if len(held) + len(cells) > limits.max_media:
                raise invalid(column, f"more than the limit of {limits.max_media} images")
            held += [self._pictures.held(value, column) for value in cells]
        return held

    def _told(self, row: dict[str, Any], num_images: int) -> list[Segment]:
        config = self._config
        asked = self._optional(row, config.prompt_column) or config.prompt
        told = clean_text(row[config.caption_column], config.caption_column, config.limits)
        segments = [Segment(type="image", media=index) for index in range(num_images)]
        if asked:
            segments.append(Segment(text=asked, branch=1, task=config.task))
        return [*segments, Segment(text=told, role="assistant", loss=True, branch=1, task=config.task)]

    def _optional(self, row: dict[str, Any], column: str) -> str:
        if not column:
            return ""
        value = row[column]
        return clean_text(str(value) if isinstance(value, int) else value, column, self._config.limits)
