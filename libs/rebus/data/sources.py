"""From an ingestion's ``Source`` messages to readers, everything checked before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from rebus import config as configs
from rebus import registry
from rebus.data.fetching import Fetcher, is_web_address
from rebus.data.folders import StoreFolder, WebFolder
from rebus.data.readers.base import Location, Reader, SourceSettings
from rebus.data.readers.bounded import bounded
from rebus.errors import FieldViolation, InvalidArgumentError, NotFoundError, RebusError, invalid
from rebus.store import Store
from rebus.v1.dataset_pb2 import Source

# Folders, separated as in PATH, that sources must lie below. Unset: any, for a command that reads its user's files.
ROOTS_ENV = "REBUS_INGEST_ROOTS"
# Stores (``s3://bucket/prefix``), separated by commas, that sources must lie below. Unset: none where the folders are
# limited, else any.
STORES_ENV = "REBUS_INGEST_STORES"


def build_reader(source: Source, field: str) -> Reader:
    """The reader of a source. Errors name ``field`` and what in it is wrong:

    ``InvalidArgumentError`` for an unknown reader or setting, a malformed URI or one outside the allowed roots;
    ``NotFoundError`` for a path that does not exist.
    """
    component = registry.get("reader", source.reader, field=f"{field}.reader")
    config = configs.build(component.config, plain(source.settings, f"{field}.settings"), where=f"{field}.settings")
    location = _location(source, isinstance(config, SourceSettings), f"{field}.uri")
    with _naming(field):
        reader: Reader = component.target(config, location)
    return bounded(reader, config.limits.max_samples, field) if isinstance(config, SourceSettings) else reader


def plain(settings: Struct, field: str) -> dict[str, Any]:
    """A ``Struct`` as plain values; whole numbers, which it can only hold as floats, become integers again.

    ``InvalidArgumentError`` naming ``field`` for a number that is not finite, which JSON cannot hold.
    """
    try:
        return {key: _whole(value) for key, value in json_format.MessageToDict(settings).items()}
    except ValueError:
        raise invalid(field, "holds a number that is not finite") from None


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _whole(inner) for key, inner in value.items()}
    return [_whole(inner) for inner in value] if isinstance(value, list) else value


def _location(source: Source, wants_path: bool, field: str) -> Location | None:
    if not wants_path:
        if source.uri:
            raise invalid(field, f"the reader {source.reader!r} makes its samples and reads no path; leave it empty")
        return None
    if is_web_address(source.uri):
        return _web_location(source.uri, field)
    if source.uri.startswith("s3://"):
        return _store_location(source.uri, field)
    path = _local_path(source.uri, field)
    try:
        resolved = path.resolve()  # links followed, so that none leads out of the roots
        _check_allowed(resolved, path, field)
        if not resolved.exists():
            raise NotFoundError(f"{field}: no such path: {path}", violations=[FieldViolation(field, "no such path")])
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise invalid(field, f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return Location(resolved) if resolved.is_dir() else Location(resolved.parent, resolved.name)


def _web_location(uri: str, field: str) -> Location:
    """Talks to nobody: what is there shows when the job runs."""
    fetcher = Fetcher.from_environment()
    try:
        fetcher.check(uri)
    except InvalidArgumentError as error:
        raise invalid(field, str(error)) from None
    return Location(WebFolder(uri, fetcher), unquote(urlsplit(uri).path.rpartition("/")[2]))


def _store_location(uri: str, field: str) -> Location:
    parts = uri.removeprefix("s3://").rstrip("/").split("/")
    if "?" in uri or "#" in uri or not all(parts) or {".", ".."} & set(parts):
        raise invalid(field, f"expected s3://bucket/prefix, found {uri!r}")
    _check_allowed_store("s3://" + "/".join(parts), field)
    if len(parts) > 1:
        parent = Store.open("s3://" + "/".join(parts[:-1]))
        if parent.exists(parts[-1]):
            return Location(StoreFolder(parent), parts[-1])
    store = Store.open("s3://" + "/".join(parts))
    if not store.list_page(page_size=1)[0]:
        raise NotFoundError(
            f"{field}: nothing at {uri}", violations=[FieldViolation(field, "no such object or folder")]
        )
    return Location(StoreFolder(store))


def _check_allowed_store(uri: str, field: str) -> None:
    """Comes before any call to the store, so that nothing outside the allowed ones is revealed."""
    allowed = os.environ.get(STORES_ENV)
    if allowed is None and ROOTS_ENV not in os.environ:
        return
    roots = [root.strip().rstrip("/") for root in (allowed or "").split(",") if root.strip()]
    if not any(f"{uri}/".startswith(f"{root}/") for root in roots):
        raise invalid(field, f"{uri} is outside the stores that this server reads from (see {STORES_ENV})")


def _local_path(uri: str, field: str) -> Path:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise invalid(field, f"{uri!r} is no URI: {error}") from None
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        uri = unquote(parts.path)
    if not uri.startswith("/") or "\0" in uri:
        raise invalid(
            field, f"expected an absolute path, file:///path, s3://bucket/prefix or a web address, found {uri!r}"
        )
    return Path(uri)


def _check_allowed(resolved: Path, path: Path, field: str) -> None:
    """Comes before any check of existence, so that nothing outside the roots is revealed."""
    roots = os.environ.get(ROOTS_ENV)
    if roots is None:
        return
    allowed = [Path(root).resolve() for root in roots.split(os.pathsep) if root]
    if not any(resolved.is_relative_to(root) for root in allowed):
        raise invalid(field, f"{path} is outside the folders that this server reads from")


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Lets a reader's errors name the source that they are of."""
    try:
        yield
    except (InvalidArgumentError, NotFoundError) as error:
        violations = [FieldViolation(f"{field}.{v.field}", v.description) for v in error.violations]
        raise _rebuilt(error, f"{field}: {error}", violations or [FieldViolation(field, str(error))]) from None


def _rebuilt(error: RebusError, message: str, violations: list[FieldViolation]) -> RebusError:
    return type(error)(message, violations=violations, metadata=error.metadata)
