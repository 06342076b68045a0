"""A job's output, kept while it runs: ``<job>/logs/<number>.txt``, the oldest dropped beyond a bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from rebus.errors import NotFoundError
from rebus.store.objects import Store


class LogWriter:
    """Adds output to the last object of a log, and begins the next when that is full.

    An object is replaced whole as it grows, so a reader finds whole writes only. Not more than ``chunk_bytes`` *
    ``chunks`` bytes are kept. Safe under one writing and one flushing thread.
    """

    def __init__(self, store: Store, name: str, *, chunk_bytes: int, chunks: int) -> None:
        self._store, self._name = store, name
        self._chunk_bytes, self._chunks = chunk_bytes, chunks
        self._number = max(_numbers(store, name), default=0) + 1
        self._data = bytearray()
        self._dirty = False
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Takes output; it is durable after the next ``flush``, or at once where it fills an object."""
        with self._lock:
            while data:
                room = self._chunk_bytes - len(self._data)
                self._data += data[:room]
                data, self._dirty = data[room:], True
                if len(self._data) == self._chunk_bytes:
                    self._put()
                    self._advance()

    def flush(self) -> None:
        """Makes what was written durable."""
        with self._lock:
            if self._dirty:
                self._put()

    def _put(self) -> None:
        self._store.put(_path(self._name, self._number), bytes(self._data))
        self._dirty = False

    def _advance(self) -> None:
        self._number += 1
        self._data.clear()
        for number in _numbers(self._store, self._name):
            if number <= self._number - 1 - self._chunks:
                self._store.delete(_path(self._name, number))


def read(store: Store, name: str) -> Iterator[bytes]:
    """What is kept of a job's output, oldest first; attempts follow each other."""
    for number in _numbers(store, name):
        try:
            yield store.get(_path(name, number))
        except NotFoundError:  # dropped since it was listed
            continue


def _numbers(store: Store, name: str) -> list[int]:
    files = (info.path.rpartition("/")[2].removesuffix(".txt") for info in store.list(f"{name}/logs"))
    return sorted(int(file) for file in files if file.isdigit())


def _path(name: str, number: int) -> str:
    return f"{name}/logs/{number:06d}.txt"
