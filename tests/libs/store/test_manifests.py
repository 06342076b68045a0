from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rebus.errors import AlreadyExistsError, DataLossError, NotFoundError
from rebus.store import Store, manifests


def _write(store: Store) -> None:
    store.put("models/m/versions/1/a.bin", b"aaa")
    store.put("models/m/versions/1/sub/b.bin", b"bb")


def _fetched(store: Store, cache: Path) -> dict[str, bytes]:
    with manifests.fetch(store, "models/m/versions/1", cache) as folder:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_nothing_is_visible_before_the_manifest(any_store: Store, tmp_path: Path) -> None:
    _write(any_store)
    with pytest.raises(NotFoundError, match="models/m/versions/1 is not published"):
        _fetched(any_store, tmp_path)
    manifests.publish(any_store, "models/m/versions/1")
    assert _fetched(any_store, tmp_path) == {"a.bin": b"aaa", "sub/b.bin": b"bb"}
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
    with pytest.raises(DataLossError, match="models/m/versions/1/a.bin: stored bytes were altered"):
        _fetched(any_store, tmp_path)
    any_store.put("models/m/versions/1/a.bin", b"aaa")
    with pytest.raises(DataLossError, match="models/m/versions/1/sub/b.bin: missing"):
        _fetched(any_store, tmp_path)


def test_an_altered_manifest_is_refused(store: Store) -> None:
    _write(store)
    manifests.publish(store, "models/m/versions/1")
    path = "models/m/versions/1/manifest.json"
    store.put(path, store.get(path).replace(b"a.bin", b"c.bin"))
    with pytest.raises(DataLossError, match="manifest.json: stored bytes were altered"):
        manifests.read(store, "models/m/versions/1")


@pytest.mark.parametrize("altered", [b"aab", b"aa", b"aaaa", b""])
def test_every_read_notices_an_altered_part(any_store: Store, tmp_path: Path, altered: bytes) -> None:
    _write(any_store)
    manifests.publish(any_store, "models/m/versions/1")
    assert manifests.read_part(any_store, "models/m/versions/1", "a.bin") == b"aaa"
    any_store.put("models/m/versions/1/a.bin", altered)
    reads = [
        lambda: manifests.read_part(any_store, "models/m/versions/1", "a.bin"),
        lambda: _fetched(any_store, tmp_path),
    ]
    for read in reads:
        with pytest.raises(DataLossError, match="models/m/versions/1/a.bin: stored bytes were altered") as caught:
            read()
        assert caught.value.metadata == {"path": "models/m/versions/1/a.bin"}


def test_a_part_that_is_not_there(store: Store) -> None:
    _write(store)
    manifests.publish(store, "models/m/versions/1")
    with pytest.raises(NotFoundError, match="models/m/versions/1 has no part c.bin"):
        manifests.read_part(store, "models/m/versions/1", "c.bin")
    store.delete("models/m/versions/1/a.bin")
    with pytest.raises(DataLossError, match="models/m/versions/1/a.bin: missing"):
        manifests.read_part(store, "models/m/versions/1", "a.bin")


def test_a_copy_is_checked_against_its_source(store: Store) -> None:
    _write(store)
    manifests.publish(store, "models/m/versions/1")
    manifests.publish_copy(store, "models/m/versions/1", "sub", "copy")
    assert [entry.path for entry in manifests.read(store, "copy").entries] == ["b.bin"]
    store.put("models/m/versions/1/sub/b.bin", b"xx")
    with pytest.raises(DataLossError, match="other/b.bin: stored bytes were altered"):
        manifests.publish_copy(store, "models/m/versions/1", "sub", "other")
    assert not store.exists("other/manifest.json")


def test_damage_on_the_way_up_is_not_published(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "x").write_bytes(b"data")
    published = manifests.publish_folder(store, "whole", tmp_path / "in")
    assert [(entry.path, entry.size) for entry in published.entries] == [("sub/x", 4)]
    monkeypatch.setattr(Store, "upload", lambda self, source, path: self.put(path, b"dat4"))
    with pytest.raises(DataLossError, match="damaged/sub/x: stored bytes were altered"):
        manifests.publish_folder(store, "damaged", tmp_path / "in")
    assert not store.exists("damaged/manifest.json")


def test_concurrent_fetches_download_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(store)
    manifests.publish(store, "models/m/versions/1")
    read: list[str] = []
    chunks = Store.chunks
    monkeypatch.setattr(Store, "chunks", lambda self, path: (read.append(path), chunks(self, path))[1])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: _fetched(store, tmp_path / "cache"), range(16)))
    assert found == [{"a.bin": b"aaa", "sub/b.bin": b"bb"}] * 16
    assert sorted(read) == ["models/m/versions/1/a.bin", "models/m/versions/1/sub/b.bin"]
