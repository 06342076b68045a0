"""What an exporter is, and what exporters share: a folder that appears whole or not at all, names of media."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rebus.data.images import sniff_format
from rebus.data.readers.webdataset import OTHER_ENDING
from rebus.data.sample import Sample
from rebus.errors import AlreadyExistsError, InvalidArgumentError, invalid

_ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


class Exporter(Protocol):
    """Built as ``exporter(config)``."""

    def write(self, samples: Iterable[Sample], folder: Path) -> int:
        """Writes samples one by one into an empty folder; how many there were.

        ``InvalidArgumentError`` names the first sample that the format cannot hold, and why.
        """
        ...


def export(exporter: Exporter, samples: Iterable[Sample], folder: Path) -> int:
    """Exports into ``folder``, which must be absent or empty and appears only when it is whole.

    ``AlreadyExistsError`` if there is something in it; ``InvalidArgumentError`` for what the format cannot hold, for
    no samples at all, and for a folder that cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise AlreadyExistsError(f"{folder} is not empty; export into a new folder")
        with _staged(folder) as staging:
            count = exporter.write(samples, staging)
            if not count:
                raise InvalidArgumentError("there are no samples to export")
            os.replace(staging, folder)
    except OSError as error:
        raise invalid("folder", f"{folder} cannot be written: {error.strerror or error}") from None
    return count


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, removed at the end if it is still there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        staging.chmod(0o755)  # a temporary folder is for its owner alone; an export is for others
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def media_ending(data: bytes) -> str:
    """The ending of a file of these bytes: that of an image, or ``OTHER_ENDING``."""
    kind = sniff_format(data)
    return _ENDINGS[kind] if kind else OTHER_ENDING
