"""Samples as Parquet files with one row a sample, media included."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rebus.data.rows import SAMPLE_COLUMNS, SCHEMA, to_batches
from rebus.data.sample import Sample
from rebus.registry import register

# A row group: what a reader holds of a column at a time.
_GROUP_ROWS = 1024
_GROUP_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ParquetExportConfig:
    """How large the files become."""

    # A file is closed once it holds as many bytes.
    file_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.file_bytes < 1:
            raise ValueError(f"file_bytes={self.file_bytes} must be at least 1")


@register("exporter", "parquet", config=ParquetExportConfig)
class ParquetExporter:
    """Parquet files that hold all there is of every sample, media included."""

    def __init__(self, config: ParquetExportConfig) -> None:
        self._file_bytes = config.file_bytes

    def write(self, samples: Iterable[Sample], folder: Path) -> int:
        """Writes ``part-00000.parquet`` and so on."""
        schema = pa.schema([SCHEMA.field(name) for name in SAMPLE_COLUMNS])
        batches = to_batches(samples, batch_rows=_GROUP_ROWS, batch_bytes=_GROUP_BYTES)
        count = part = 0
        batch = next(batches, None)
        while batch is not None:
            path = folder / f"part-{part:05d}.parquet"
            part += 1
            with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
                while batch is not None:
                    writer.write_batch(batch.select(list(SAMPLE_COLUMNS)))
                    count += batch.num_rows
                    batch = next(batches, None)
                    if file.tell() >= self._file_bytes:
                        break
        return count
