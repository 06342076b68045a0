"""Objects: atomic writes, create-if-absent, compare-and-swap, listing, over a folder or any S3."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions as ob
from obstore.store import LocalStore, S3Store

from rebus.errors import (
    AbortedError,
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RebusError,
    UnavailableError,
    invalid,
)
from rebus.store.observation import observed

STORE_ENV = "REBUS_STORE"
_LOCKS = ".locks"
_MAX_PATH = 1024
_RETRIES = 5
_RETRY_TIMEOUT = timedelta(seconds=30)
_BAD_URL = "expected file:///absolute/folder or s3://bucket/prefix"
_S3_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
    "AWS_REGION": "aws_region",
    "AWS_ENDPOINT_URL": "aws_endpoint",
}


@dataclass(frozen=True)
class ObjectInfo:
    """A stored object: its path below the store's root, its size in bytes, its last change."""

    path: str
    size: int
    last_modified: datetime


@observed("get", "get_range", "put", "create", "get_tagged", "swap", "info", "list", "folders", "delete", "copy")
@observed("upload", "download", "delete_prefix")
class Store:
    """An object store below one URL; every path is relative to it and uses ``/``.

    S3 endpoints and credentials come from the usual variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``); nothing secret is part of the URL. Instances are thread-safe.
    """

    def __init__(self, url: str, backend: LocalStore | S3Store, *, root: Path | None) -> None:
        self.url = url
        self._backend = backend
        self._root = root

    @classmethod
    def open(cls, url: str) -> Store:
        """Opens ``file:///folder`` (made if absent) or ``s3://bucket/prefix``; raises on any other URL."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
                raise invalid("store", f"{url!r}: {_BAD_URL}")
            return cls._open_folder(Path(unquote(parts.path)))
        if parts.scheme == "s3" and parts.netloc:
            return cls._open_bucket(url, parts.netloc, parts.path.strip("/"))
        raise invalid("store", f"{url!r}: {_BAD_URL}")

    @classmethod
    def _open_folder(cls, root: Path) -> Store:
        try:
            root.mkdir(parents=True, exist_ok=True)
            backend = LocalStore(str(root), mkdir=True)
        except OSError as error:
            raise invalid("store", f"cannot use {root}: {error.strerror or error}") from None
        return cls(root.absolute().as_uri(), backend, root=root.absolute())

    @classmethod
    def _open_bucket(cls, url: str, bucket: str, prefix: str) -> Store:
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        backend = S3Store(
            bucket,
            prefix=prefix or None,
            config={"conditional_put": "etag", "virtual_hosted_style_request": False},
            client_options={"allow_http": endpoint.startswith("http://"), "timeout": "60s"},
            retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_TIMEOUT},
        )
        return cls(url.rstrip("/"), backend, root=None)

    def get(self, path: str) -> bytes:
        """The object's bytes; ``NotFoundError`` if there is none."""
        with _errors(path):
            return bytes(obstore.get(self._backend, _checked(path)).bytes())

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` (fewer at the object's end)."""
        with _errors(path):
            return bytes(obstore.get_range(self._backend, _checked(path), start=offset, length=length))

    def put(self, path: str, data: bytes) -> None:
        """Writes the object whole, replacing what was there; readers see the old bytes or the new."""
        with _errors(path):
            obstore.put(self._backend, _checked(path), data, mode="overwrite")

    def create(self, path: str, data: bytes) -> None:
        """Writes the object only if there is none; ``AlreadyExistsError`` otherwise. One of many callers wins."""
        with _errors(path):
            obstore.put(self._backend, _checked(path), data, mode="create", use_multipart=False)

    def get_tagged(self, path: str) -> tuple[bytes, str]:
        """The bytes with the tag that ``swap`` compares."""
        with _errors(path):
            result = obstore.get(self._backend, _checked(path))
            data, tag = bytes(result.bytes()), result.meta["e_tag"]
        return data, _content_tag(data) if self._root else str(tag)

    def swap(self, path: str, data: bytes, tag: str) -> None:
        """Replaces the object only if it still has ``tag``; ``AbortedError`` if it changed meanwhile."""
        if self._root is None:
            with _errors(path):
                obstore.put(self._backend, _checked(path), data, mode={"e_tag": tag}, use_multipart=False)
            return
        # A folder has no conditional write, so writers of one object take turns under a lock file.
        with self._locked(path):
            if _content_tag(self.get(path)) != tag:
                raise AbortedError(f"{path} was changed by another writer")
            self.put(path, data)

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self.info(path)
        except NotFoundError:
            return False
        return True

    def info(self, path: str) -> ObjectInfo:
        """Size and last change; ``NotFoundError`` if there is no such object."""
        with _errors(path):
            return _info(obstore.head(self._backend, _checked(path)))

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Every object below the folder ``prefix`` in order of path, those up to ``after`` left out."""
        with _errors(prefix):
            pages = obstore.list(self._backend, _checked(prefix) if prefix else None, offset=after or None)
            found = [_info(meta) for page in pages for meta in page]
        yield from sorted((i for i in found if not i.path.startswith(_LOCKS)), key=lambda i: i.path)

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below ``prefix``, sorted."""
        with _errors(prefix):
            result = obstore.list_with_delimiter(self._backend, _checked(prefix))
        return sorted(PurePosixPath(p).name for p in result["common_prefixes"])

    def delete(self, path: str) -> None:
        """Removes the object; removing what is not there is no error."""
        try:
            with _errors(path):
                obstore.delete(self._backend, _checked(path))
        except NotFoundError:
            return

    def delete_prefix(self, prefix: str) -> int:
        """Removes every object below ``prefix``; how many there were."""
        paths = [info.path for info in self.list(prefix)]
        for path in paths:
            self.delete(path)
        return len(paths)

    def copy(self, source: str, target: str) -> None:
        """Copies an object within the store."""
        with _errors(source):
            obstore.copy(self._backend, _checked(source), _checked(target), overwrite=True)

    def upload(self, source: Path, path: str) -> None:
        """Writes a file's bytes as one object, in parts where it is large."""
        with _errors(path):
            obstore.put(self._backend, _checked(path), source, mode="overwrite")

    def chunks(self, path: str, *, chunk_bytes: int = 4 << 20) -> Iterator[bytes]:
        """The object's bytes in pieces, so that its size does not matter."""
        with _errors(path):
            for chunk in obstore.get(self._backend, _checked(path)).stream(min_chunk_size=chunk_bytes):
                yield bytes(chunk)

    def download(self, path: str, target: Path) -> str:
        """Writes the object to ``target`` and returns the SHA-256 (hex) of what was written."""
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for chunk in self.chunks(path):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def lance_uri(self, path: str) -> str:
        """Where Lance finds the dataset at ``path``."""
        return str(self._root / _checked(path)) if self._root else f"{self.url}/{_checked(path)}"

    @property
    def lance_options(self) -> dict[str, str] | None:
        """Storage options for Lance; ``None`` for a folder."""
        if self._root is not None:
            return None
        options = {key: os.environ[name] for name, key in _S3_SETTINGS.items() if name in os.environ}
        if options.get("aws_endpoint", "").startswith("http://"):
            options["allow_http"] = "true"
        return options

    @contextmanager
    def _locked(self, path: str) -> Iterator[None]:
        assert self._root is not None
        lock = self._root / _LOCKS / hashlib.sha256(path.encode()).hexdigest()[:2]
        lock.parent.mkdir(exist_ok=True)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _content_tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _info(meta: obstore.ObjectMeta) -> ObjectInfo:
    return ObjectInfo(path=meta["path"], size=meta["size"], last_modified=meta["last_modified"])


def _checked(path: str) -> str:
    """Refuses paths that could leave the store's root."""
    parts = path.split("/")
    if not path or len(path) > _MAX_PATH or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise InvalidArgumentError(f"{path!r} is not a path within the store")
    return path


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """Turns the backend's errors into domain errors that name the path."""
    try:
        yield
    except RebusError:
        raise
    except Exception as error:
        _raise(error, path)


def _raise(error: Exception, path: str) -> NoReturn:
    text = str(error).partition("\n")[0]
    if isinstance(error, FileNotFoundError | ob.NotFoundError):
        raise NotFoundError(f"no object {path}", metadata={"path": path}) from None
    if isinstance(error, ob.AlreadyExistsError):
        raise AlreadyExistsError(f"{path} exists", metadata={"path": path}) from None
    if isinstance(error, ob.PreconditionError | ob.NotModifiedError):
        raise AbortedError(f"{path} was changed by another writer", metadata={"path": path}) from None
    if isinstance(error, ob.PermissionDeniedError | ob.UnauthenticatedError | PermissionError):
        raise PermissionDeniedError(f"{path}: the store refused the credentials: {text}") from None
    if isinstance(error, ob.BaseError | OSError):
        raise UnavailableError(f"{path}: the store failed: {text}", metadata={"path": path}) from error
    raise error
