"""Samples as WebDataset shards: for each sample its media, what is told as text, and its whole record as JSON.

Other tools read the images and ``.txt``; our reader reads the record, which holds everything else.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rebus.config import canonical_json
from rebus.data.exporters.base import media_ending
from rebus.data.readers.exact import RECORD_FIELDS
from rebus.data.readers.webdataset import RECORD_ENDING
from rebus.data.rows import to_row
from rebus.data.sample import Sample
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class WebDatasetExportConfig:
    """How large the shards become: one is closed once it holds as many samples or bytes."""

    shard_samples: int = 10_000
    shard_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if min(self.shard_samples, self.shard_bytes) < 1:
            raise ValueError("shard_samples and shard_bytes must be at least 1")


@register("exporter", "webdataset", config=WebDatasetExportConfig)
class WebDatasetExporter:
    """WebDataset tar shards that hold all there is of every sample; other tools read images and texts of them."""

    def __init__(self, config: WebDatasetExportConfig) -> None:
        self._config = config

    def write(self, samples: Iterable[Sample], folder: Path) -> int:
        """Writes ``shard-000000.tar`` and so on; equal samples give equal bytes."""
        rest = iter(samples)
        count = shard = 0
        sample = next(rest, None)
        while sample is not None:
            path = folder / f"shard-{shard:06d}.tar"
            shard += 1
            with path.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
                first = count
                while sample is not None and count - first < self._config.shard_samples:
                    for name, data in _members(sample, f"{count:09d}"):
                        _add(tar, name, data)
                    count += 1
                    sample = next(rest, None)
                    if file.tell() >= self._config.shard_bytes:
                        break
        return count


def _members(sample: Sample, key: str) -> Iterator[tuple[str, bytes]]:
    names = [f"{index}.{media_ending(data)}" for index, data in enumerate(sample.media)]
    for name, data in zip(names, sample.media, strict=True):
        yield f"{key}.{name}", data
    told = "\n".join(segment.text for segment in sample.segments if segment.type == "text" and segment.loss)
    if told:
        yield f"{key}.txt", told.encode()
    row = to_row(sample)
    yield f"{key}.{RECORD_ENDING}", canonical_json({**{name: row[name] for name in RECORD_FIELDS}, "media": names})


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
