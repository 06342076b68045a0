"""Media in chunks: what a message cannot carry."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rebus.errors import invalid
from rebus.v1.media_pb2 import UploadMediaRequest

CHUNK_BYTES = 1 << 20


@contextmanager
def opened(source: Path | bytes) -> Iterator[IO[bytes]]:
    """The bytes to send; ``InvalidArgumentError`` for a file that cannot be read."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise invalid("source", f"cannot read {source}: {error.strerror or error}") from None
    with file:
        yield file


def requests(file: IO[bytes]) -> Iterator[UploadMediaRequest]:
    """The file's chunks, hashed as they are sent; the last message carries the SHA-256."""
    sha256 = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        sha256.update(chunk)
        yield UploadMediaRequest(chunk=chunk)
    yield UploadMediaRequest(sha256=sha256.hexdigest())
