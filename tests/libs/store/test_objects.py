"""One suite over every kind of store."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rebus.errors import AbortedError, AlreadyExistsError, InvalidArgumentError, NotFoundError
from rebus.store import Store


def test_put_get_overwrite_delete(any_store: Store) -> None:
    any_store.put("a/b.bin", b"one")
    any_store.put("a/b.bin", b"two")
    assert any_store.get("a/b.bin") == b"two"
    assert any_store.get_range("a/b.bin", 1, 2) == b"wo"
    assert any_store.info("a/b.bin").size == 3

    any_store.delete("a/b.bin")
    any_store.delete("a/b.bin")
    assert not any_store.exists("a/b.bin")
    with pytest.raises(NotFoundError, match="a/b.bin"):
        any_store.get("a/b.bin")


def test_create_has_one_winner_of_many(any_store: Store) -> None:
    barrier = threading.Barrier(16)

    def attempt(number: int) -> bool:
        barrier.wait()
        try:
            any_store.create("one", str(number).encode())
            return True
        except AlreadyExistsError:
            return False

    with ThreadPoolExecutor(16) as pool:
        wins = list(pool.map(attempt, range(16)))
    assert sum(wins) == 1
    assert any_store.get("one") == str(wins.index(True)).encode()


def test_swap_loses_no_update(any_store: Store) -> None:
    any_store.put("counter", b"0")

    def add(_: int) -> None:
        while True:
            data, tag = any_store.get_tagged("counter")
            try:
                any_store.swap("counter", str(int(data) + 1).encode(), tag)
                return
            except AbortedError:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert any_store.get("counter") == b"40"


def test_swap_refuses_a_stale_tag(any_store: Store) -> None:
    any_store.put("x", b"1")
    _, tag = any_store.get_tagged("x")
    any_store.put("x", b"2")
    with pytest.raises(AbortedError, match="x was changed"):
        any_store.swap("x", b"3", tag)
    assert any_store.get("x") == b"2"


def test_list_is_recursive_sorted_and_resumes(any_store: Store) -> None:
    paths = ["r/a/1", "r/a/2", "r/b", "r/b2/0", "ra/no"]
    for path in reversed(paths):
        any_store.put(path, path.encode())
    assert [i.path for i in any_store.list("r")] == paths[:4]
    assert [i.path for i in any_store.list("r", after="r/a/2")] == ["r/b", "r/b2/0"]
    assert any_store.folders("r") == ["a", "b2"]
    assert any_store.delete_prefix("r") == 4
    assert [i.path for i in any_store.list()] == ["ra/no"]


def test_upload_and_download_round_trip(any_store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000  # 10 MB: more than one part
    (tmp_path / "in").write_bytes(data)
    any_store.upload(tmp_path / "in", "big")
    any_store.copy("big", "copy")
    assert any_store.download("copy", tmp_path / "out") == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/../b", "./a", "a/", "a\0b", "a" * 1025])
def test_paths_cannot_leave_the_store(store: Store, path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not a path within the store"):
        store.put(path, b"")


@pytest.mark.parametrize("url", ["", "relative/folder", "http://host/x", "s3://", "file://host/x", "ftp://x"])
def test_a_wrong_url_says_what_is_expected(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected file:///absolute/folder or s3://bucket/prefix") as caught:
        Store.open(url)
    assert caught.value.violations[0].field == "store"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match=f"cannot use {tmp_path / 'file'}"):
        Store.open((tmp_path / "file").as_uri())
