"""What the tests of readers share: pictures, and a reader's good samples and bad ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rebus import registry
from rebus.data.readers import Location, Quarantined
from rebus.data.sample import Sample


def png(seed: int = 0, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read(folder: Path, reader: str, file: str = "", **settings: Any) -> tuple[list[Sample], dict[str, str]]:
    """The good samples, and the reasons of the bad by location."""
    built = registry.build("reader", {"name": reader, **settings}, Location(folder, file))
    items: Iterator[Sample | Quarantined] = iter(built)
    samples, bad = [], {}
    for item in items:
        if isinstance(item, Quarantined):
            bad[item.location] = item.reason
        else:
            item.validate()
            samples.append(item)
    return samples, bad
