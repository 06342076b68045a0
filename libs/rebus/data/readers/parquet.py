"""Samples that ``rebus export`` wrote as Parquet, exactly as they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rebus.data.readers.base import Location, Quarantined, SourceSettings, each_row
from rebus.data.readers.exact import exact_sample
from rebus.data.readers.files import check_inside, each_file, list_files
from rebus.data.readers.tables import table_rows
from rebus.data.rows import SAMPLE_COLUMNS
from rebus.data.sample import Sample
from rebus.errors import invalid
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class ParquetConfig(SourceSettings):
    """Which files. Ids, splits, sources and licences are those of the files; the settings of that name do nothing."""

    # Files inside the folder; empty: every .parquet below it. A URI that names a file reads that one.
    files: list[str] = field(default_factory=list)


@register("reader", "parquet", config=ParquetConfig)
class ParquetReader:
    """What the parquet exporter wrote: every sample exactly as it was."""

    def __init__(self, config: ParquetConfig, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._files = [location.file] if location.file else config.files
        for name in self._files:
            check_inside(self._root, name)

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        yield from each_file(self._files or list_files(self._root, (".parquet",)), self._read)

    def _read(self, name: str) -> Iterator[Sample | Quarantined]:
        return each_row(table_rows(self._root, name, SAMPLE_COLUMNS, self._config.limits), self._sample)

    def _sample(self, where: str, row: dict[str, Any]) -> Sample:
        media = row["media"]
        if not isinstance(media, list) or not all(isinstance(data, bytes) for data in media):
            raise invalid("media", "expected a list of bytes")
        return exact_sample(row, media, self._config.limits)
