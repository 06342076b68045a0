"""Objects: atomic writes, create-if-absent, compare-and-swap, listing, over a folder, memory, or any S3."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.store import LocalStore, MemoryStore

from rebus.errors import AbortedError, DataLossError, FailedPreconditionError, NotFoundError, UnavailableError, invalid
from rebus.store.backends import Backends, open_backends
from rebus.store.conditional import ConditionalWriter, Tag
from rebus.store.failures import ConflictError, RangeBeyondEndError, translated
from rebus.store.observation import observed
from rebus.store.paths import LOCKS, checked, is_staged
from rebus.store.settings import StoreSettings

if TYPE_CHECKING:
    from obstore import GetOptions

STORE_ENV = "REBUS_STORE"
DEFAULT_PAGE_SIZE = 1000
MAX_PAGE_SIZE = 10_000
_S3_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
    "AWS_REGION": "aws_region",
    "AWS_ENDPOINT_URL": "aws_endpoint",
}

T = TypeVar("T")


@dataclass(frozen=True)
class ObjectInfo:
    """A stored object: its path below the store's root, its size in bytes, its last change."""

    path: str
    size: int
    last_modified: datetime


@observed("get", "get_range", "put", "create", "get_tagged", "swap", "info", "list_page", "folders", "delete", "copy")
@observed("upload", "put_stream", "chunks", "download", "scan", "list", "delete_prefix")
class Store:
    """An object store below one URL; every path is relative to it and uses ``/``.

    S3 endpoints and credentials come from the usual variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``); nothing secret is part of the URL. Instances are thread-safe.

    Calls try again within the bounds of ``StoreSettings`` and then raise ``UnavailableError``.
    """

    def __init__(self, backends: Backends, settings: StoreSettings) -> None:
        self.url = backends.url
        self.settings = settings
        self._backend = backends.once
        self._patient = backends.patient
        self._root = backends.root
        # A folder's failures (no space, no permission) do not pass by themselves.
        remote = not isinstance(backends.once, LocalStore | MemoryStore)
        self._attempts = settings.attempts if remote else settings.single_attempt().attempts
        self._writer = None if isinstance(backends.once, LocalStore) else ConditionalWriter(backends.once, settings)

    @classmethod
    def open(cls, url: str, settings: StoreSettings | None = None) -> Store:
        """Opens ``file:///folder`` (made if absent), ``s3://bucket/prefix``, or ``memory://name``; raises on all else.

        A ``memory://`` store lives as long as this process and is seen by it alone: for tests and notebooks. Jobs run
        in processes of their own and Lance reads files, so neither can use one. Without ``settings``, those of the
        environment hold.
        """
        settings = settings or StoreSettings.from_environment()
        return cls(open_backends(url, settings), settings)

    @property
    def process_local(self) -> bool:
        """Whether no other process can see what is stored."""
        return isinstance(self._backend, MemoryStore)

    def get(self, path: str) -> bytes:
        """The object's bytes; ``NotFoundError`` if there is none."""
        return self._try(path, lambda: bytes(obstore.get(self._backend, path).bytes()))

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``: fewer at the object's end, none behind it."""
        if offset < 0 or length < 0:
            raise invalid("range", f"expected an offset and a length of 0 or more, found {offset} and {length}")
        if not length:
            self.info(path)
            return b""
        try:
            return self._try(path, lambda: bytes(obstore.get_range(self._backend, path, start=offset, length=length)))
        except RangeBeyondEndError:
            return b""

    def put(self, path: str, data: bytes) -> None:
        """Writes the object whole, replacing what was there; readers see the old bytes or the new."""
        backend = self._patient if len(data) > self.settings.part_bytes else self._backend
        self._try(path, lambda: _put(backend, path, data, chunk_size=self.settings.part_bytes))

    def create(self, path: str, data: bytes) -> str:
        """Writes the object only if there is none and returns its tag; ``AlreadyExistsError`` otherwise.

        One of many callers wins.
        """
        checked(path)
        if self._writer is not None:
            return self._writer.create(path, data)
        self._try(path, lambda: _put(self._backend, path, data, mode="create", use_multipart=False))
        return _content_tag(data)

    def get_tagged(self, path: str) -> tuple[bytes, str]:
        """The bytes with the tag that ``swap`` compares."""

        def read() -> tuple[bytes, str]:
            result = obstore.get(self._backend, path)
            data = bytes(result.bytes())
            return data, _content_tag(data) if self._root else str(Tag.of(result))

        return self._try(path, read)

    def swap(self, path: str, data: bytes, tag: str) -> str:
        """Replaces the object only if it still has ``tag`` and returns the new tag.

        ``AbortedError`` if it changed meanwhile.
        """
        checked(path)
        if self._writer is not None:
            return self._writer.swap(path, data, tag)
        # A folder has no conditional write, so writers of one object take turns under a lock file.
        with self._locked(path):
            if _content_tag(self.get(path)) != tag:
                raise AbortedError(f"{path} was changed by another writer", metadata={"path": path})
            self.put(path, data)
        return _content_tag(data)

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self.info(path)
        except NotFoundError:
            return False
        return True

    def info(self, path: str) -> ObjectInfo:
        """Size and last change; ``NotFoundError`` if there is no such object."""
        return self._try(path, lambda: _info(obstore.head(self._backend, path)))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below the folder ``prefix`` in order of path; holds the whole listing in memory."""
        yield from sorted(self.scan(prefix), key=lambda info: info.path)

    def scan(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Every object below the folder ``prefix`` behind ``after``, page by page, in the store's own order."""
        token = after
        while True:
            page, token = self.list_page(prefix, page_size=MAX_PAGE_SIZE, page_token=token)
            yield from page
            if not token:
                return

    def list_page(
        self, prefix: str = "", *, page_size: int = DEFAULT_PAGE_SIZE, page_token: str = ""
    ) -> tuple[list[ObjectInfo], str]:
        """At most ``page_size`` objects below the folder ``prefix``, and the token of the next page (``""``: none).

        Pages follow the store's own order, which is not always that of the paths (SeaweedFS and folders compare name
        by name). What is there from the first page to the last is listed once; the token is the last path listed.
        """
        if not 1 <= page_size <= MAX_PAGE_SIZE:
            raise invalid("page_size", f"expected 1 to {MAX_PAGE_SIZE}, found {page_size}")
        if page_token and not checked(page_token).startswith(f"{prefix}/" if prefix else ""):
            raise invalid("page_token", "not a token of this listing; start again without one")
        found = self._try(prefix or None, lambda: self._first(prefix, page_token, page_size + 1))
        return found[:page_size], found[page_size - 1].path if len(found) > page_size else ""

    def _first(self, prefix: str, after: str, count: int) -> list[ObjectInfo]:
        if self._root is not None:
            return _take(self._walk(prefix, after), count)
        pages = obstore.list(self._backend, prefix or None, offset=after or None, chunk_size=count)
        return _take((_info(meta) for page in pages for meta in page), count)

    def _walk(self, folder: str, after: str) -> Iterator[ObjectInfo]:
        """A folder's objects behind ``after``, name by name, one folder's names in memory at a time."""
        result = obstore.list_with_delimiter(self._backend, folder or None)
        names: dict[str, ObjectInfo | None] = {PurePosixPath(p).name: None for p in result["common_prefixes"]}
        names |= {PurePosixPath(meta["path"]).name: _info(meta) for meta in result["objects"]}
        position = _names(after)[len(_names(folder)) :]
        for name in sorted(names):
            info, path = names[name], f"{folder}/{name}" if folder else name
            if path == LOCKS or (position and name < position[0]):
                continue
            inside = bool(position) and name == position[0]
            if info is None:
                yield from self._walk(path, after if inside else "")
            elif not inside:
                yield info

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below ``prefix``, sorted."""
        result = self._try(prefix, lambda: obstore.list_with_delimiter(self._backend, prefix))
        return sorted(PurePosixPath(p).name for p in result["common_prefixes"])

    def delete(self, path: str) -> None:
        """Removes the object; removing what is not there is no error."""
        try:
            self._try(path, lambda: obstore.delete(self._backend, path))
        except NotFoundError:
            return

    def delete_prefix(self, prefix: str) -> int:
        """Removes every object below ``prefix``; how many there were."""
        count = 0
        for info in self.scan(prefix):
            self.delete(info.path)
            count += 1
        return count

    def copy(self, source: str, target: str) -> None:
        """Copies an object within the store; the copy counts as changed now."""
        checked(target)
        if self._root is not None and (self._root / checked(source)).is_file():
            # obstore links a folder's files: the copy would be as old as its source, and gc take it for left over.
            os.utime(self._root / source)
        self._try(source, lambda: obstore.copy(self._backend, source, target, overwrite=True))

    def upload(self, source: Path, path: str, *, take: bool = False) -> None:
        """Writes a file's bytes as one object, in parts where it is large; nothing is visible before all of it is.

        With ``take`` the file is given away: a folder on the same file system moves it in place of a copy.
        """
        if take and self._root is not None and _moved(source, self._root / checked(path)):
            return
        self._try(path, lambda: _put(self._patient, path, source, chunk_size=self.settings.part_bytes))

    def put_stream(self, path: str, chunks: Iterable[bytes]) -> None:
        """Writes what ``chunks`` yields as one object, in parts; if it raises, nothing is written.

        Each part is tried again within the bounds of the settings, the whole is not.
        """
        checked(path)
        with translated(path):
            _put(self._patient, path, iter(chunks), use_multipart=True, chunk_size=self.settings.part_bytes)

    def chunks(self, path: str) -> Iterator[bytes]:
        """The object's bytes in pieces of about ``StoreSettings.part_bytes``, so that its size does not matter.

        All are of one state of the object: if it is replaced meanwhile, they are the old ones or ``AbortedError`` is
        raised. ``DataLossError`` if the store sends too few bytes.
        """
        if self._root is not None:  # an open file stays the file that it was
            result = self._try(path, lambda: obstore.get(self._backend, path))
            with translated(path):
                yield from (bytes(chunk) for chunk in result.stream(min_chunk_size=self.settings.part_bytes))
            return
        meta = self._try(path, lambda: obstore.head(self._backend, path))
        for start in range(0, meta["size"], self.settings.part_bytes):
            end = min(start + self.settings.part_bytes, meta["size"])
            options: GetOptions = {"range": (start, end), "if_match": meta["e_tag"]}
            chunk = self._try(path, lambda o=options: bytes(obstore.get(self._backend, path, options=o).bytes()))
            if len(chunk) != end - start:
                raise DataLossError(f"{path}: {len(chunk)} bytes at {start}, expected {end - start}")
            yield chunk

    def download(self, path: str, target: Path) -> str:
        """Writes the object to ``target`` and returns the SHA-256 (hex) of what was written."""
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for chunk in self.chunks(path):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def staged(self) -> Iterator[ObjectInfo]:
        """Files that a killed writer left half written in a folder store; they are in no listing.

        What a killed upload left in a bucket is removed by the bucket's lifecycle rule (``buckets.ensure_bucket``).
        """
        if self._root is None:
            return
        for file in self._root.rglob("*#*"):
            if is_staged(file.name) and file.is_file():
                status = file.stat()
                changed = datetime.fromtimestamp(status.st_mtime, UTC)
                yield ObjectInfo(file.relative_to(self._root).as_posix(), status.st_size, changed)

    def remove_staged(self, path: str) -> None:
        """Removes what ``staged`` listed."""
        if self._root is None or not is_staged(path) or ".." in path.split("/"):
            raise invalid("path", f"{path!r} is not a half-written file of this store")
        (self._root / path).unlink(missing_ok=True)

    def lance_uri(self, path: str) -> str:
        """Where Lance finds the dataset at ``path``; ``FailedPreconditionError`` for a ``memory://`` store."""
        if self.process_local:
            raise FailedPreconditionError(f"{self.url}: datasets need a file:// or s3:// store; Lance reads no memory")
        return str(self._root / checked(path)) if self._root else f"{self.url}/{checked(path)}"

    @property
    def lance_options(self) -> dict[str, str] | None:
        """Storage options for Lance; ``None`` for a folder."""
        if self._root is not None:
            return None
        options = {key: os.environ[name] for name, key in _S3_SETTINGS.items() if name in os.environ}
        if options.get("aws_endpoint", "").startswith("http://"):
            options["allow_http"] = "true"
        return options

    def _try(self, path: str | None, operation: Callable[[], T]) -> T:
        """Calls an operation that may be repeated, until it succeeds or the retries are spent."""
        if path is not None:
            checked(path)
        failure: UnavailableError | ConflictError | None = None
        for _ in self._attempts():
            try:
                with translated(path or self.url):
                    return operation()
            except (UnavailableError, ConflictError) as error:
                failure = error
        assert failure is not None
        raise failure

    @contextmanager
    def _locked(self, path: str) -> Iterator[None]:
        assert self._root is not None
        lock = self._root / LOCKS / hashlib.sha256(path.encode()).hexdigest()[:2]
        with translated(path):
            lock.parent.mkdir(exist_ok=True)
            file = lock.open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _put(backend: Any, path: str, data: Any, **options: Any) -> None:
    obstore.put(backend, path, data, **options)


def _take(infos: Iterator[ObjectInfo], count: int) -> list[ObjectInfo]:
    found: list[ObjectInfo] = []
    for info in infos:
        found.append(info)
        if len(found) == count:
            break
    return found


def _names(path: str) -> list[str]:
    return path.split("/") if path else []


def _moved(source: Path, target: Path) -> bool:
    """Moves a file in one step, unless the two lie on different file systems."""
    with translated(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
    return True


def _content_tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _info(meta: obstore.ObjectMeta) -> ObjectInfo:
    return ObjectInfo(path=meta["path"], size=meta["size"], last_modified=meta["last_modified"])
