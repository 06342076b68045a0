"""Manifests: what a multi-object resource consists of, written last, so it appears whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rebus.config import digest
from rebus.errors import DataLossError, NotFoundError
from rebus.store.cache import CachedObject, LocalCache
from rebus.store.documents import decode, encode
from rebus.store.objects import Store
from rebus.store.paths import MANIFEST, checked
from rebus.v1.common_pb2 import Manifest, ManifestEntry

# The folder of fetched objects below a machine's cache folder.
CACHE = "objects"


def publish(
    store: Store,
    folder: str,
    paths: Sequence[str] | None = None,
    *,
    base: str | None = None,
    expected: Mapping[str, str] | None = None,
) -> Manifest:
    """Makes the objects below ``base`` (default: ``folder``) visible as one resource.

    ``paths`` are relative to ``base``; without them, all objects below it count. Every object is read back and
    hashed, then ``folder/manifest.json`` is created: ``AlreadyExistsError`` if there is one. ``DataLossError`` if an
    object's SHA-256 is not the one ``expected`` has for its path: damage on the way must not be blessed by a digest.
    """
    base = base or folder
    if paths is None:
        paths = [i.path.removeprefix(f"{base}/") for i in store.scan(base) if not i.path.endswith(f"/{MANIFEST}")]
    manifest = Manifest(entries=[_hash(store, base, path) for path in sorted(set(paths))])
    for entry in manifest.entries:
        if expected is not None and expected.get(entry.path) != entry.sha256:
            raise _altered(f"{base}/{entry.path}")
    manifest.digest = content_digest(manifest)
    manifest.create_time.GetCurrentTime()
    store.create(f"{folder}/{MANIFEST}", encode(manifest))
    return manifest


def publish_folder(store: Store, name: str, source: Path) -> Manifest:
    """Uploads a local folder's files and publishes them as ``name``; ``DataLossError`` if any arrived altered."""
    expected: dict[str, str] = {}
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        path = file.relative_to(source).as_posix()
        with file.open("rb") as opened:
            expected[path] = hashlib.file_digest(opened, "sha256").hexdigest()
        store.upload(file, f"{name}/{path}")
    return publish(store, name, list(expected), expected=expected)


def publish_copy(store: Store, source: str, part: str, target: str) -> Manifest:
    """Copies what a published folder ``source`` holds below ``part`` and publishes it as ``target``.

    ``DataLossError`` if a copy is not what the source's manifest says.
    """
    prefix = f"{part}/"
    entries = [entry for entry in read(store, source).entries if entry.path.startswith(prefix)]
    expected = {entry.path.removeprefix(prefix): entry.sha256 for entry in entries}
    for path in expected:
        store.copy(f"{source}/{prefix}{path}", f"{target}/{path}")
    return publish(store, target, list(expected), expected=expected)


def content_digest(manifest: Manifest) -> str:
    """SHA-256 over the entries: equal for equal contents, whenever and wherever published."""
    return digest([[entry.path, entry.size, entry.sha256] for entry in manifest.entries])


def read(store: Store, folder: str) -> Manifest:
    """The manifest; ``NotFoundError`` if the resource was never published, ``DataLossError`` if altered."""
    path = f"{folder}/{MANIFEST}"
    try:
        data = store.get(path)
    except NotFoundError:
        raise NotFoundError(f"{folder} is not published", metadata={"name": folder}) from None
    manifest = decode(data, Manifest, path)
    if content_digest(manifest) != manifest.digest:
        raise DataLossError(f"{path}: the digest does not match the entries", metadata={"path": path})
    return manifest


def verify(store: Store, folder: str, *, base: str | None = None) -> list[str]:
    """Reads every object of the manifest and lists what is wrong, one line an object; empty when all is well."""
    base = base or folder
    problems: list[str] = []
    for entry in read(store, folder).entries:
        try:
            found = _hash(store, base, entry.path)
        except NotFoundError:
            problems.append(f"{base}/{entry.path}: missing")
            continue
        if (found.size, found.sha256) != (entry.size, entry.sha256):
            problems.append(f"{base}/{entry.path}: stored bytes were altered")
    return problems


def read_part(store: Store, folder: str, path: str) -> bytes:
    """One object of a published folder, whole and verified.

    ``NotFoundError`` if the folder is not published or has no such part, ``DataLossError`` naming the object if its
    bytes are not those that were published.
    """
    entry = next((entry for entry in read(store, folder).entries if entry.path == path), None)
    if entry is None:
        raise NotFoundError(f"{folder} has no part {path}", metadata={"path": f"{folder}/{path}"})
    try:
        data = store.get(f"{folder}/{path}")
    except NotFoundError:
        raise DataLossError(f"{folder}/{path}: missing", metadata={"path": f"{folder}/{path}"}) from None
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _altered(f"{folder}/{path}")
    return data


@contextmanager
def fetch(store: Store, folder: str, cache_dir: Path) -> Iterator[Path]:
    """A local, verified copy of a published folder, through the cache of ``cache_dir``; it stays until the block ends.

    ``NotFoundError`` if it is not published, ``DataLossError`` naming the object if one is missing or altered.
    """
    wanted = [
        CachedObject(name=f"{folder}/{checked(e.path)}", path=e.path, size=e.size, sha256=e.sha256)
        for e in read(store, folder).entries
    ]
    with LocalCache(cache_dir / CACHE).folder(wanted, lambda name: _chunks(store, name)) as copy:
        yield copy


def _chunks(store: Store, name: str) -> Iterator[bytes]:
    try:
        yield from store.chunks(name)
    except NotFoundError:
        raise DataLossError(f"{name}: missing", metadata={"path": name}) from None


def _altered(name: str) -> DataLossError:
    return DataLossError(f"{name}: stored bytes were altered", metadata={"path": name})


def _hash(store: Store, base: str, path: str) -> ManifestEntry:
    sha256, size = hashlib.sha256(), 0
    for chunk in store.chunks(f"{base}/{path}"):
        sha256.update(chunk)
        size += len(chunk)
    return ManifestEntry(path=path, size=size, sha256=sha256.hexdigest())
