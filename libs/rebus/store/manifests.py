"""Manifests: what a multi-object resource consists of, written last, so it appears whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rebus.config import digest
from rebus.errors import DataLossError, NotFoundError
from rebus.store.documents import decode, encode
from rebus.store.objects import Store
from rebus.v1.common_pb2 import Manifest, ManifestEntry

MANIFEST = "manifest.json"


def publish(store: Store, folder: str, paths: Sequence[str] | None = None, *, base: str | None = None) -> Manifest:
    """Makes the objects below ``base`` (default: ``folder``) visible as one resource.

    ``paths`` are relative to ``base``; without them, all objects below it count. Every object is read back and
    hashed, then ``folder/manifest.json`` is created: ``AlreadyExistsError`` if there is one.
    """
    base = base or folder
    if paths is None:
        paths = [i.path.removeprefix(f"{base}/") for i in store.list(base) if not i.path.endswith(f"/{MANIFEST}")]
    manifest = Manifest(entries=[_hash(store, base, path) for path in sorted(set(paths))])
    manifest.digest = content_digest(manifest)
    manifest.create_time.GetCurrentTime()
    store.create(f"{folder}/{MANIFEST}", encode(manifest))
    return manifest


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


def fetch(store: Store, folder: str, cache_dir: Path) -> Path:
    """A local, verified copy of a published folder, kept below ``cache_dir`` by content digest.

    Safe under concurrent callers: the copy is renamed into place whole. Raises ``DataLossError`` if a byte differs.
    """
    manifest = read(store, folder)
    target = cache_dir / manifest.digest
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=cache_dir, prefix=".fetch-"))
    try:
        for entry in manifest.entries:
            if store.download(f"{folder}/{entry.path}", temporary / entry.path) != entry.sha256:
                raise DataLossError(f"{folder}/{entry.path}: stored bytes were altered")
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _hash(store: Store, base: str, path: str) -> ManifestEntry:
    sha256, size = hashlib.sha256(), 0
    for chunk in store.chunks(f"{base}/{path}"):
        sha256.update(chunk)
        size += len(chunk)
    return ManifestEntry(path=path, size=size, sha256=sha256.hexdigest())
