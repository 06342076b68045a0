from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rebus.errors import AlreadyExistsError, DataLossError, NotFoundError
from rebus.store import Store, manifests


def _write(store: Store) -> None:
    store.put("models/m/versions/1/a.bin", b"aaa")
    store.put("models/m/versions/1/sub/b.bin", b"bb")


def test_nothing_is_visible_before_the_manifest(any_store: Store, tmp_path: Path) -> None:
    _write(any_store)
    with pytest.raises(NotFoundError, match="models/m/versions/1 is not published"):
        manifests.fetch(any_store, "models/m/versions/1", tmp_path)
    manifests.publish(any_store, "models/m/versions/1")
    folder = manifests.fetch(any_store, "models/m/versions/1", tmp_path)
    assert (folder / "a.bin").read_bytes() == b"aaa"
    assert (folder / "sub" / "b.bin").read_bytes() == b"bb"
    with pytest.raises(AlreadyExistsError):
        manifests.publish(any_store, "models/m/versions/1")


def test_digest_depends_on_contents_only(store: Store) -> None:
    _write(store)
    store.put("copy/a.bin", b"aaa")
    store.put("copy/sub/b.bin", b"bb")
    first = manifests.publish(store, "models/m/versions/1")
    assert manifests.publish(store, "copy").digest == first.digest


def test_verify_names_what_is_altered_and_what_is_missing(any_store: Store, tmp_path: Path) -> None:
    _write(any_store)
    manifests.publish(any_store, "models/m/versions/1")
    assert manifests.verify(any_store, "models/m/versions/1") == []
    any_store.put("models/m/versions/1/a.bin", b"aab")
    any_store.delete("models/m/versions/1/sub/b.bin")
    assert manifests.verify(any_store, "models/m/versions/1") == [
        "models/m/versions/1/a.bin: stored bytes were altered",
        "models/m/versions/1/sub/b.bin: missing",
    ]
    with pytest.raises(DataLossError, match="a.bin: stored bytes were altered"):
        manifests.fetch(any_store, "models/m/versions/1", tmp_path)
    assert list(tmp_path.glob(".fetch-*")) == []


def test_an_altered_manifest_is_refused(store: Store) -> None:
    _write(store)
    manifests.publish(store, "models/m/versions/1")
    path = "models/m/versions/1/manifest.json"
    store.put(path, store.get(path).replace(b"a.bin", b"c.bin"))
    with pytest.raises(DataLossError, match="manifest.json: stored bytes were altered"):
        manifests.read(store, "models/m/versions/1")


def test_concurrent_fetches_share_one_copy(store: Store, tmp_path: Path) -> None:
    _write(store)
    manifests.publish(store, "models/m/versions/1")
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: manifests.fetch(store, "models/m/versions/1", tmp_path / "cache"), range(16)))
    assert len(folders) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folders.pop().name]
