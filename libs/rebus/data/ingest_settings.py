"""How much memory an ingestion takes and how much of its work a kill can cost; each may be set in the environment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

from rebus import config
from rebus.data.staging import BATCH_BYTES, BATCH_ROWS

PREFIX = "REBUS_INGEST_"


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Bounds of one ingestion; ``from_environment`` reads ``REBUS_INGEST_<FIELD>``, e.g. ``REBUS_INGEST_WORKERS=8``.

    Memory is that of the process (about 200 MB with its libraries), ``ahead_bytes``, about four times ``batch_bytes``
    (samples, their Arrow copy, and two batches on the way through Lance), and for each worker its largest sample and
    the pixels of its largest image (three bytes a pixel, ``limits.image.max_pixels`` of the source). It does not grow
    with the number of samples.
    """

    # Threads that read and decode samples to check them; 0 does it without.
    workers: int = 4
    # Finished samples that wait to be written.
    ahead_bytes: int = 64 << 20
    # A batch that is written at once: at most so many rows, and no more once they hold so many bytes.
    batch_rows: int = BATCH_ROWS
    batch_bytes: int = BATCH_BYTES
    # After so many samples, bytes or seconds what was read is made durable; a kill costs what came after.
    stretch_samples: int = 65_536
    stretch_bytes: int = 1 << 30
    stretch_seconds: float = 60.0

    def __post_init__(self) -> None:
        least = {"workers": 0}
        bad = [name for name, value in dataclasses.asdict(self).items() if value < least.get(name, 1)]
        if bad:
            raise ValueError(f"out of range: {', '.join(bad)}")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> IngestSettings:
        """The settings that variables name, defaults for the others; errors name the variable."""
        names = {field.name: f"{PREFIX}{field.name.upper()}" for field in dataclasses.fields(cls)}
        values = {name: environ[variable] for name, variable in names.items() if variable in environ}
        return config.build(cls, values, where="REBUS_INGEST")
