"""Uploaded media: immutable objects named by the SHA-256 of their bytes, below ``media/``.

No document refers to them. ``rebus gc`` removes them once they are older than its grace period; uploading the same
bytes again starts it anew.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rebus.errors import DataLossError, NotFoundError, ResourceExhaustedError, invalid
from rebus.store.objects import Store

COLLECTION = "media"
# Files that a killed process left in a staging folder are removed by the next one after this many seconds.
STALE_SECONDS = 24 * 3600.0


class Staging:
    """An upload on local disk: hashed as it comes, published by one atomic write."""

    def __init__(self, file: IO[bytes], path: Path, max_bytes: int) -> None:
        self._file = file
        self._path = path
        self._max_bytes = max_bytes
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, chunk: bytes) -> None:
        """Appends bytes; ``InvalidArgumentError`` beyond the bound, ``ResourceExhaustedError`` if the disk is full."""
        self.size_bytes += len(chunk)
        if self.size_bytes > self._max_bytes:
            raise invalid("chunk", f"more than the server's limit of {self._max_bytes} bytes in all")
        self._sha256.update(chunk)
        with _full_disk():
            self._file.write(chunk)

    def publish(self, store: Store, sha256: str) -> str:
        """Stores the object and returns its name; ``InvalidArgumentError`` unless ``sha256`` is that of its bytes."""
        found = self._sha256.hexdigest()
        if not self.size_bytes:
            raise invalid("chunk", "no bytes; expected at least 1")
        if sha256 != found:
            raise invalid("sha256", f"expected {found}, that of the {self.size_bytes} bytes received; found {sha256!r}")
        with _full_disk():
            self._file.flush()
        name = f"{COLLECTION}/{found}"
        # Also where it exists: the write makes it young again, so that `gc` keeps it for another period of grace.
        store.upload(self._path, name, take=True)
        return name


@contextmanager
def staging(folder: Path, max_bytes: int) -> Iterator[Staging]:
    """A new upload in ``folder``, of at most ``max_bytes``; its file is removed when the block ends."""
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        try:
            yield Staging(file, Path(file.name), max_bytes)
        finally:
            Path(file.name).unlink(missing_ok=True)  # unless the store took it


def staging_folder(folder: Path) -> Path:
    """Makes the folder and removes what killed processes left in it long ago; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process cleans up too
            if path.stat().st_mtime < time.time() - STALE_SECONDS:
                path.unlink()
    return folder


def size_of(store: Store, name: str) -> int:
    """Size in bytes; ``NotFoundError`` if there is no such object."""
    try:
        return store.info(name).size
    except NotFoundError:
        raise _missing(name) from None


def read(store: Store, name: str) -> bytes:
    """The bytes; ``NotFoundError`` if there is no such object, ``DataLossError`` if they are not those uploaded."""
    try:
        data = store.get(name)
    except NotFoundError:
        raise _missing(name) from None
    if not is_intact(name, data):
        raise DataLossError(f"{name}: stored bytes were altered", metadata={"path": name})
    return data


def is_intact(name: str, data: bytes) -> bool:
    """Whether the bytes are those that the name stands for."""
    return name == f"{COLLECTION}/{hashlib.sha256(data).hexdigest()}"


def _missing(name: str) -> NotFoundError:
    return NotFoundError(f"no {name}; upload it (again)", metadata={"name": name})


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceExhaustedError("the server's disk is full; nothing was stored") from None
