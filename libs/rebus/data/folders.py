"""Source folders that are not on this machine; a file of theirs is on local disk for as long as it is read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from rebus.data.fetching import Fetcher
from rebus.data.readers.base import Quarantined
from rebus.data.readers.files import too_large
from rebus.errors import invalid
from rebus.store import Store


class StoreFolder:
    """The objects below a store's URL."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def name(self) -> str:
        """The last part of the store's URL."""
        return PurePosixPath(urlsplit(self._store.url).path).name or urlsplit(self._store.url).netloc

    def check(self, relative: str) -> None:
        """``NotFoundError`` if there is no such object."""
        self._store.info(relative)

    @contextmanager
    def open(self, relative: str, *, max_bytes: int) -> Iterator[BinaryIO]:
        """A copy of the object; all its bytes are of one state of it."""
        if self._store.info(relative).size > max_bytes:
            raise too_large(relative, max_bytes)
        with tempfile.TemporaryFile(prefix="rebus-source-") as file:
            for chunk in self._store.chunks(relative):
                file.write(chunk)
            file.seek(0)
            yield file

    def read(self, relative: str, *, max_bytes: int) -> bytes:
        """The bytes of an object."""
        data = self._store.get_range(relative, 0, max_bytes + 1)
        if len(data) > max_bytes:
            raise too_large(relative, max_bytes)
        return data

    def files(self, suffixes: tuple[str, ...]) -> Iterator[str | Quarantined]:
        """Paths of the objects; one that could be no path is quarantined."""
        for info in self._store.list():
            if not info.path.lower().endswith(suffixes):
                continue
            if info.path.isprintable():
                yield info.path
            else:
                yield Quarantined(repr(info.path), "the object's name is not printable text")


class WebFolder:
    """What lies next to a web address. Nothing can be listed there, so files must be named."""

    def __init__(self, url: str, fetcher: Fetcher) -> None:
        self._base = urljoin(url, ".")
        # The file that the address names keeps its query.
        self._named = {PurePosixPath(urlsplit(url).path).name: url} if not urlsplit(url).path.endswith("/") else {}
        self._fetcher = fetcher

    @property
    def name(self) -> str:
        """The last part of the address, or its host."""
        parts = urlsplit(self._base)
        return PurePosixPath(parts.path).name or str(parts.hostname)

    def check(self, relative: str) -> None:
        """``InvalidArgumentError`` if the host is not allowed; talks to nobody."""
        self._fetcher.check(self._url(relative))

    @contextmanager
    def open(self, relative: str, *, max_bytes: int) -> Iterator[BinaryIO]:
        """A copy of the file."""
        with tempfile.TemporaryFile(prefix="rebus-source-") as file:
            self._fetcher.download(self._url(relative), file, max_bytes=max_bytes)
            file.seek(0)
            yield file

    def read(self, relative: str, *, max_bytes: int) -> bytes:
        """The bytes of a small file, as an image of ``Fetcher.read``."""
        return self._fetcher.read(self._url(relative), max_bytes=max_bytes)

    def files(self, suffixes: tuple[str, ...]) -> Iterator[str | Quarantined]:
        """Raises: the web has no listings."""
        raise invalid("uri", f"{self._base} cannot be listed; name one file, or set `files`")

    def _url(self, relative: str) -> str:
        return self._named.get(relative) or urljoin(self._base, quote(relative))
