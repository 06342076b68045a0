"""Captioned media: a folder of files and a table that says something about each; what the readers of one kind share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

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
from rebus.data.readers.table import Table
from rebus.data.sample import Sample, Segment, SegmentType
from rebus.errors import invalid

_ROUNDING_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class CaptionedConfig(SourceSettings, ABC):
    """Where the captions are and what the table's columns mean; a subclass names the column of the files."""

    # The table, inside the folder; a source whose URI names a file reads that one.
    captions: str = "captions.csv"
    caption_column: str = "caption"
    # Optional columns: a sample's id (default: its line), its family (default: its file's bytes), its split.
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
    @abstractmethod
    def media_column(self) -> str:
        """The column that holds the files' paths."""

    @property
    def columns(self) -> list[str]:
        """Every column that must be there."""
        named = [self.media_column, self.caption_column, self.id_column, self.family_column, self.split_column]
        return [column for column in (*named, *self.metadata_columns) if column]


@dataclass(frozen=True, kw_only=True)
class TimedConfig(CaptionedConfig, ABC):
    """Captions of media that have time, or of parts of them."""

    # Optional columns, in seconds: where the part that the row is about starts and ends.
    start_column: str = ""
    end_column: str = ""

    @property
    def columns(self) -> list[str]:
        """Every column that must be there."""
        return [*super().columns, *(column for column in (self.start_column, self.end_column) if column)]


C = TypeVar("C", bound=CaptionedConfig)


class CaptionedReader(DraftingReader, Generic[C]):
    """One sample a row: the file, what the user asks (if anything), and the caption, which is learned."""

    def __init__(self, config: C, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._source = config.source or location.label
        self._table = Table(self._root, location.file or config.captions, config.columns, config.limits)

    def drafts(self) -> Iterator[Draft | Quarantined]:
        yield from each_draft(self._table, self._sample)

    @abstractmethod
    def load(self, name: str, values: dict[str, Any]) -> tuple[bytes, Segment, dict[str, Any]]:
        """The bytes of the media of that name, their segment, and what is known of them.

        ``InvalidArgumentError`` or ``NotFoundError`` says what is wrong with them.
        """

    def _sample(self, where: str, values: dict[str, Any]) -> Sample:
        config, limits = self._config, self._config.limits
        name = clean_text(values.get(config.media_column), config.media_column, limits)
        caption = clean_text(values.get(config.caption_column), config.caption_column, limits)
        data, shown, known = self.load(name, values)
        asked = [Segment(text=config.prompt, branch=1, task=config.task)] if config.prompt else []
        told = Segment(text=caption, role="assistant", loss=True, branch=1, task=config.task)
        return made_sample(
            config,
            self._source,
            self._optional(values, config.id_column) or where,
            [shown, *asked, told],
            [data],
            metadata={"file": name, **known, **{column: values.get(column) for column in config.metadata_columns}},
            family=self._optional(values, config.family_column),
            split=self._optional(values, config.split_column),
        )

    def _optional(self, values: dict[str, Any], column: str) -> str:
        return clean_text(values.get(column), column, self._config.limits) if column else ""


def timed_segment(kind: SegmentType, config: TimedConfig, values: dict[str, Any], seconds: float) -> Segment:
    """The segment of a row over media that last ``seconds``; ``InvalidArgumentError`` names a column that is wrong."""
    start = _time(values, config.start_column, seconds)
    end = _time(values, config.end_column, seconds)
    return Segment(type=kind, media=0, start_seconds=start, end_seconds=end)


def _time(values: dict[str, Any], column: str, seconds: float) -> float | None:
    """The column's time, or None where there is no column or the row leaves it open."""
    value = values.get(column) if column else None
    if value is None or value == "":
        return None
    try:
        time = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        time = math.nan
    if math.isnan(time):
        raise invalid(column, f"expected seconds, found {str(value)[:40]!r}")
    # Tables round their times, so that one may lie just behind the end.
    if not 0 <= time <= seconds + _ROUNDING_SECONDS:
        raise invalid(column, f"{time:g} s is outside the {seconds:.2f} s that there are")
    return time
