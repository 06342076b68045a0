"""A bounded read-through cache of stored objects on this machine, shared by all its processes.

```
<root>/objects/<sha256>      one object, read-only, named by its content
<root>/objects/<sha256>~<id> one that is being fetched
<root>/views/<id>/           the folder that one reader sees: hard links to objects
<root>/fetching/<xx>         held while an object whose name begins so is fetched, so that it is fetched once
<root>/lock                  held for moments, while space is counted and taken
```
Whoever fetches or reads holds a lock on its file or folder, which ends with its process: what nobody holds is removed
by the next one to need space. An object is in use while a view links to it, and is kept; of the others those go first
that were read longest ago. So a reader's files stay until it is done, and the bound holds: what does not fit beside
what readers use is refused. The folder must be on a file system with hard links.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rebus.errors import DataLossError, ResourceExhaustedError, invalid
from rebus.store.failures import translated

BYTES_ENV = "REBUS_CACHE_BYTES"
DEFAULT_BYTES = 64 << 30
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class CachedObject:
    """An object that a reader wants, and what its bytes are known to be."""

    # Where it is stored, and where the reader sees it in its folder.
    name: str
    path: str
    size: int
    sha256: str


# Yields the bytes of a stored object.
Fetch = Callable[[str], Iterable[bytes]]


def max_bytes_from_environment() -> int:
    """``REBUS_CACHE_BYTES``, or 64 GiB."""
    text = os.environ.get(BYTES_ENV, str(DEFAULT_BYTES))
    if not text.isdigit() or int(text) < 1:
        raise invalid(BYTES_ENV, f"expected a number of bytes of 1 or more, found {text!r}")
    return int(text)


class LocalCache:
    """Objects by SHA-256 below ``root``, at most ``max_bytes`` of them. Safe under concurrent threads and processes."""

    def __init__(self, root: Path, max_bytes: int | None = None) -> None:
        self._objects, self._views, self._lock = root / "objects", root / "views", root / "lock"
        self._fetching = root / "fetching"
        self._max_bytes = max_bytes if max_bytes is not None else max_bytes_from_environment()
        for folder in (self._objects, self._views, self._fetching):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def folder(self, objects: list[CachedObject], fetch: Fetch) -> Iterator[Path]:
        """A folder with the wanted objects, verified now and kept until the block ends; do not write into it.

        ``DataLossError`` naming the object if fetched bytes are not those expected; bytes that went bad in the cache
        are fetched again. ``ResourceExhaustedError`` if the cache cannot hold them.
        """
        total = sum({wanted.sha256: wanted.size for wanted in objects}.values())
        if total > self._max_bytes:
            raise ResourceExhaustedError(f"{total} bytes are more than the cache holds: {BYTES_ENV}={self._max_bytes}")
        view = self._views / secrets.token_hex(8)
        with ExitStack() as stack:
            with self._exclusive(), translated(str(view)):
                stack.enter_context(_held(view.with_suffix(".lock")))
                stack.callback(shutil.rmtree, view, ignore_errors=True)
                view.mkdir()
            for wanted in objects:
                self._place(wanted, view / wanted.path, fetch)
            yield view
        with self._exclusive():
            self._make_room(0)

    def _place(self, wanted: CachedObject, target: Path, fetch: Fetch) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._link(wanted, target):
            return
        with _locked(self._fetching / wanted.sha256[:2]):
            if not self._link(wanted, target):
                self._fetch(wanted, target, fetch)

    def _link(self, wanted: CachedObject, target: Path) -> bool:
        """Links what the cache holds into a view, which keeps it there; false if it has nothing, or nothing sound."""
        try:
            os.link(self._path(wanted), target)
        except FileNotFoundError:
            return False
        os.utime(target)  # read now, which is what removal goes by
        if _sha256(target) == wanted.sha256:
            return True
        target.unlink()
        self._path(wanted).unlink(missing_ok=True)
        return False

    def _fetch(self, wanted: CachedObject, target: Path, fetch: Fetch) -> None:
        """Brings an object into the cache and into the view."""
        partial = self._objects / f"{wanted.sha256}~{secrets.token_hex(8)}"
        with ExitStack() as stack:
            with self._exclusive(), translated(str(partial)):
                self._make_room(wanted.size)
                stack.enter_context(_held(partial))
                os.truncate(partial, wanted.size)  # takes the space, as counted by the next one
            stack.callback(partial.unlink, missing_ok=True)
            with translated(str(partial)):
                _write(partial, wanted, fetch(wanted.name))
                partial.chmod(0o444)
                os.link(partial, target)
                partial.rename(self._path(wanted))

    def _make_room(self, needed: int) -> None:
        """Removes what nobody holds and, oldest first, what nobody reads, until ``needed`` bytes fit."""
        _sweep(self._views)
        _sweep(self._objects)
        held = [(path, status) for path in self._objects.iterdir() if (status := _status(path)) is not None]
        excess = sum(status.st_size for _, status in held) + needed - self._max_bytes
        idle = [(s.st_mtime_ns, s.st_size, path) for path, s in held if s.st_nlink == 1 and "~" not in path.name]
        for _, size, path in sorted(idle):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size
        if excess > 0 and needed:
            raise ResourceExhaustedError(
                f"the cache has no room for {needed} bytes while readers use the rest: {BYTES_ENV}={self._max_bytes}"
            )

    def _path(self, wanted: CachedObject) -> Path:
        return self._objects / wanted.sha256

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with _locked(self._lock):
            yield


def _write(partial: Path, wanted: CachedObject, chunks: Iterable[bytes]) -> None:
    digest, size = hashlib.sha256(), 0
    with partial.open("r+b") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > wanted.size:
                break
            digest.update(chunk)
            file.write(chunk)
    if (size, digest.hexdigest()) != (wanted.size, wanted.sha256):
        raise DataLossError(f"{wanted.name}: stored bytes were altered", metadata={"path": wanted.name})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for a lock that all processes share."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Makes a file and locks it for as long as the block lasts and this process lives; then removes it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Removes files being fetched and views whose process is gone: those that nobody holds."""
    for path in folder.iterdir():
        if path.suffix != ".lock" and "~" not in path.name:
            continue
        try:
            with path.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.suffix == ".lock":
                    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink(missing_ok=True)
        except (FileNotFoundError, BlockingIOError):
            continue
