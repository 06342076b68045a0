"""Files that are read again when they change: tokens, keys and certificates are rotated without a restart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from rebus.errors import InvalidArgumentError, invalid

MAX_FILE_BYTES = 1 << 20
RELOAD_SECONDS = 1.0
# Longer than a tick of any file system's clock.
SETTLED_NS = 2_500_000_000

T = TypeVar("T")
Stamp = tuple[tuple[int, int, int] | None, ...]
log = logging.getLogger("rebus.watched")


class Watched(Generic[T]):
    """What some files say, parsed; looked at again at most every ``interval`` seconds, when it is asked for.

    ``parse`` takes the content of each file and raises ``InvalidArgumentError`` where one is wrong. At first that is
    an error; later it is logged, and the last good value stays: half a write, or one file of a pair before the other,
    must not stop a server. Safe under threads.
    """

    def __init__(
        self, paths: Sequence[Path], parse: Callable[..., T], *, field: str, interval: float = RELOAD_SECONDS
    ) -> None:
        self._paths = tuple(paths)
        self._parse = parse
        self._field = field
        self._interval = interval
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._stamp = self._stamped()
        self._contents = self._read()
        self._value = parse(*self._contents)

    @property
    def value(self) -> T:
        """The newest good value."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at >= self._interval:
                self._looked_at = now
                self._look()
            return self._value

    def _look(self) -> None:
        # Taken before the files are read, so that a change in between is seen at the next look.
        stamp = self._stamped()
        if stamp is not None and stamp == self._stamp:
            return
        self._stamp = stamp
        names = ", ".join(path.name for path in self._paths)
        try:
            contents = self._read()
            if contents == self._contents:
                return
            self._contents = contents
            self._value = self._parse(*contents)
        except InvalidArgumentError as error:
            log.error("%s changed and is not usable, what was read before stays: %s", names, error)
        else:
            log.info("%s changed and was read again", names)

    def _read(self) -> tuple[bytes, ...]:
        return tuple(read_bounded(path, self._field) for path in self._paths)

    def _stamped(self) -> Stamp | None:
        """What differs when a file was written or replaced, also through a symbolic link as Kubernetes does it. None
        where that is not sure: within one tick of the file system's clock, a second write would leave no trace."""
        stamp = tuple(_stamp(path) for path in self._paths)
        newest = max((found[0] for found in stamp if found), default=0)
        return stamp if time.time_ns() - newest > SETTLED_NS else None


def read_bounded(path: Path, field: str) -> bytes:
    """A small file's content; an error names the field that named the file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise invalid(field, f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise invalid(field, f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return content


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
