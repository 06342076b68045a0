"""One suite over every kind of store: a folder, memory, and a live SeaweedFS."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebus.errors import AbortedError, AlreadyExistsError, InvalidArgumentError, NotFoundError
from rebus.store import Store, buckets

LARGE = random.Random(0).randbytes(20 << 20)  # three parts


def test_put_get_overwrite_delete(any_store: Store) -> None:
    any_store.put("a/b.bin", b"one")
    any_store.put("a/b.bin", b"two")
    assert any_store.get("a/b.bin") == b"two"
    info = any_store.info("a/b.bin")
    assert (info.path, info.size) == ("a/b.bin", 3)
    assert abs(datetime.now(UTC) - info.last_modified) < timedelta(minutes=5)

    any_store.delete("a/b.bin")
    any_store.delete("a/b.bin")
    assert not any_store.exists("a/b.bin")
    for read in (any_store.get, any_store.get_tagged, any_store.info, lambda path: list(any_store.chunks(path))):
        with pytest.raises(NotFoundError, match="no object a/b.bin") as caught:
            read("a/b.bin")
        assert caught.value.metadata == {"path": "a/b.bin"}


def test_an_empty_object_is_an_object(any_store: Store) -> None:
    any_store.put("empty", b"")
    assert (any_store.get("empty"), any_store.info("empty").size) == (b"", 0)
    assert list(any_store.chunks("empty")) == []


def test_create_has_one_winner_of_64(any_store: Store) -> None:
    """All write the same bytes, so that the winner cannot be told by them."""
    barrier = threading.Barrier(64)

    def attempt(_: int) -> bool:
        barrier.wait()
        try:
            any_store.create("one", b"same")
            return True
        except AlreadyExistsError:
            return False

    with ThreadPoolExecutor(64) as pool:
        wins = list(pool.map(attempt, range(64)))
    assert sum(wins) == 1
    assert any_store.get("one") == b"same"


def test_create_after_delete(any_store: Store) -> None:
    any_store.create("x", b"1")
    any_store.delete("x")
    any_store.create("x", b"2")
    assert any_store.get("x") == b"2"


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


def test_swap_does_not_create(any_store: Store) -> None:
    any_store.put("x", b"1")
    _, tag = any_store.get_tagged("x")
    any_store.delete("x")
    with pytest.raises((NotFoundError, AbortedError), match="x"):
        any_store.swap("x", b"2", tag)
    assert not any_store.exists("x")


def test_a_tag_from_a_swap_chain_still_compares(any_store: Store) -> None:
    any_store.create("x", b"0")
    for number in range(1, 140):  # more than a history holds
        _, tag = any_store.get_tagged("x")
        any_store.swap("x", str(number).encode(), tag)
    assert any_store.get("x") == b"139"


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 4, b"0123"), (3, 2, b"34"), (8, 5, b"89"), (0, 99, b"0123456789"), (4, 0, b""), (10, 1, b""), (99, 5, b"")],
)
def test_ranges(any_store: Store, offset: int, length: int, expected: bytes) -> None:
    any_store.put("digits", b"0123456789")
    assert any_store.get_range("digits", offset, length) == expected


def test_a_range_of_nothing_is_an_error(any_store: Store) -> None:
    for length in (0, 3):
        with pytest.raises(NotFoundError, match="no object none"):
            any_store.get_range("none", 0, length)
    with pytest.raises(InvalidArgumentError, match="range: expected an offset and a length of 0 or more"):
        any_store.get_range("none", -1, 1)


def test_a_large_file_goes_up_and_down_in_parts(any_store: Store, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(LARGE)
    any_store.upload(tmp_path / "in", "big")
    any_store.copy("big", "copy")
    assert any_store.download("copy", tmp_path / "out") == hashlib.sha256(LARGE).hexdigest()
    assert (tmp_path / "out").read_bytes() == LARGE
    assert len(list(any_store.chunks("big"))) > 1
    any_store.put("whole", LARGE)
    assert any_store.get_range("whole", 9 << 20, 1000) == LARGE[9 << 20 :][:1000]


def test_a_stream_is_one_object(any_store: Store) -> None:
    any_store.put_stream("s", (LARGE[i : i + 1_000_000] for i in range(0, len(LARGE), 1_000_000)))
    assert b"".join(any_store.chunks("s")) == LARGE


def test_a_file_that_is_given_away_is_stored_whole(any_store: Store, tmp_path: Path) -> None:
    any_store.put("a/b", b"old")
    for path, data in (("a/b", b"new"), ("c/d/e", b"x" * 100_000)):
        source = tmp_path / "given"
        source.write_bytes(data)
        any_store.upload(source, path, take=True)
        assert any_store.get(path) == data
    assert {info.path for info in any_store.scan()} == {"a/b", "c/d/e"}


def test_a_file_of_another_file_system_is_copied(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "replace", apart)
    (tmp_path / "given").write_bytes(b"new")
    store.upload(tmp_path / "given", "a/b", take=True)
    assert store.get("a/b") == b"new"
    assert (tmp_path / "given").exists()


def test_an_aborted_upload_leaves_nothing_visible(any_store: Store) -> None:
    any_store.put("old", b"old")

    def broken() -> Iterator[bytes]:
        yield LARGE[: 12 << 20]
        raise ValueError("the source broke")

    for path in ("new", "old"):
        with pytest.raises(ValueError, match="the source broke"):
            any_store.put_stream(path, broken())
    assert [info.path for info in any_store.list()] == ["old"]
    assert any_store.get("old") == b"old"
    assert list(any_store.staged()) == []


def test_a_download_is_of_one_state_of_the_object(any_store: Store) -> None:
    any_store.put("big", LARGE)
    chunks = any_store.chunks("big")
    first = next(chunks)
    any_store.put("big", LARGE[::-1])
    with contextlib.suppress(AbortedError):
        assert first + b"".join(chunks) == LARGE


def test_list_is_recursive_and_sorted(any_store: Store) -> None:
    paths = ["r/a-b", "r/a/1", "r/a/2", "r/b", "r/b2/0", "ra/no"]
    for path in reversed(paths):
        any_store.put(path, path.encode())
    assert [(i.path, i.size) for i in any_store.list("r")] == [(path, len(path)) for path in paths[:5]]
    assert any_store.folders("r") == ["a", "b2"]
    assert any_store.folders("none") == list(any_store.list("none")) == []
    assert any_store.delete_prefix("r") == 5
    assert [i.path for i in any_store.list()] == ["ra/no"]


def _pages(store: Store, prefix: str, size: int) -> list[list[str]]:
    pages, token = [], ""
    while True:
        infos, token = store.list_page(prefix, page_size=size, page_token=token)
        pages.append([info.path for info in infos])
        if not token:
            return pages


# Characters on both sides of "/" in every order that a server may use.
NAMES = st.text("ab-.0~ é", min_size=1, max_size=3).filter(lambda name: name.strip(". ") == name)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def _no_folder_is_an_object(paths: set[str]) -> bool:
    return not any(other.startswith(f"{path}/") for path in paths for other in paths)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.sets(PATHS, max_size=12).filter(_no_folder_is_an_object), size=st.integers(1, 5))
def test_pages_list_everything_once(any_store: Store, paths: set[str], size: int) -> None:
    folder = f"p{secrets.token_hex(4)}"
    for path in paths:
        any_store.put(f"{folder}/{path}", b"")
    any_store.put(f"{folder}-", b"")
    pages = _pages(any_store, folder, size)
    assert sorted(path for page in pages for path in page) == sorted(f"{folder}/{path}" for path in paths)
    assert all(len(page) == size for page in pages[:-1])
    assert [i.path for i in any_store.list(folder)] == sorted(f"{folder}/{path}" for path in paths)


def test_pages_bear_changes_between_them(any_store: Store) -> None:
    for number in range(6):
        any_store.put(f"p/{number}", b"")
    _, token = any_store.list_page("p", page_size=2)
    any_store.delete(token)  # the page's own last object
    any_store.delete("p/3")
    any_store.put("p/5b", b"")
    infos, _ = any_store.list_page("p", page_size=10, page_token=token)
    assert [info.path for info in infos] == ["p/2", "p/4", "p/5", "p/5b"]


def test_a_page_request_is_checked(any_store: Store) -> None:
    with pytest.raises(InvalidArgumentError, match="page_size: expected 1 to 10000, found 0"):
        any_store.list_page("p", page_size=0)
    with pytest.raises(InvalidArgumentError, match="page_token: not a token of this listing"):
        any_store.list_page("p", page_token="q/1")


def test_copy_replaces_and_keeps_the_source(any_store: Store) -> None:
    any_store.put("a", b"1")
    any_store.put("b", b"2")
    any_store.copy("a", "b")
    any_store.put("a", b"3")
    assert (any_store.get("a"), any_store.get("b")) == (b"3", b"1")
    with pytest.raises(NotFoundError, match="no object none"):
        any_store.copy("none", "b")


ODD = ["sp ace", "ü/é", "pct%20x", "plus+x", "hash#x", "q?x", "star*", "x~", "(a)", "a=b&c", "'q'", "k" * 240]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_round_trip(any_store: Store, name: str) -> None:
    any_store.create(f"odd/{name}", b"1")
    data, tag = any_store.get_tagged(f"odd/{name}")
    any_store.swap(f"odd/{name}", data + b"2", tag)
    any_store.copy(f"odd/{name}", f"even/{name}")
    assert any_store.get(f"even/{name}") == b"12"
    assert [info.path for info in any_store.list("odd")] == [f"odd/{name}"]
    any_store.delete(f"odd/{name}")
    assert list(any_store.list("odd")) == []


BAD = [
    "",
    "/a",
    "a//b",
    "../a",
    "a/../b",
    "./a",
    "a/",
    "a\0b",
    "a\nb",
    "a\\b",
    "a#1",
    ".locks/00",
    "a" * 241,
    "a/" * 512,
]


@pytest.mark.parametrize("path", BAD)
def test_paths_cannot_leave_the_store(any_store: Store, path: str) -> None:
    calls = [
        lambda: any_store.get(path),
        lambda: any_store.put(path, b""),
        lambda: any_store.create(path, b""),
        lambda: any_store.swap(path, b"", "tag"),
        lambda: any_store.delete(path),
        lambda: any_store.copy("a", path),
        lambda: any_store.copy(path, "a"),
        lambda: any_store.put_stream(path, []),
        lambda: any_store.upload(Path("x"), path),
        lambda: list(any_store.chunks(path)),
    ]
    if path:  # the root may be listed
        calls.append(lambda: list(any_store.list(path)))
    for call in calls:
        with pytest.raises(InvalidArgumentError, match="not a path within the store"):
            call()


@pytest.mark.slow
def test_presigned_urls_read_and_write_one_object(s3_store: Store) -> None:
    s3_store.put("a", b"secret")
    s3_store.put("b", b"other")
    url = buckets.presigned_url(s3_store.url, "a", expires=timedelta(minutes=1))
    assert urllib.request.urlopen(url).read() == b"secret"
    upload = buckets.presigned_url(s3_store.url, "c", method="PUT", expires=timedelta(minutes=1))
    urllib.request.urlopen(urllib.request.Request(upload, b"uploaded", method="PUT"))
    assert s3_store.get("c") == b"uploaded"
    for wrong in (
        urllib.request.Request(url.replace("/a?", "/b?")),
        urllib.request.Request(url, b"", method="PUT"),
        urllib.request.Request(upload.replace("/c?", "/b?"), b"", method="PUT"),
        urllib.request.Request(url.replace("Expires=60", "Expires=6000")),
    ):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(wrong)
    assert (s3_store.get("a"), s3_store.get("b")) == (b"secret", b"other")


@pytest.mark.slow
def test_a_presigned_url_expires(s3_store: Store) -> None:
    s3_store.put("a", b"secret")
    url = buckets.presigned_url(s3_store.url, "a", expires=timedelta(seconds=1))
    threading.Event().wait(2.5)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url)


def test_only_s3_signs_urls(store: Store, memory_store: Store) -> None:
    for other in (store, memory_store):
        with pytest.raises(InvalidArgumentError, match="presigned URLs need an s3:// store"):
            buckets.presigned_url(other.url, "a")


@pytest.mark.parametrize("url", ["", "relative/folder", "http://host/x", "s3://", "file://host/x", "memory://a/b"])
def test_a_wrong_url_says_what_is_expected(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected file:///absolute/folder or s3://bucket/prefix") as caught:
        Store.open(url)
    assert caught.value.violations[0].field == "store"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match=f"cannot use {tmp_path / 'file'}"):
        Store.open((tmp_path / "file").as_uri())


def test_memory_is_shared_by_name_within_the_process(memory_store: Store) -> None:
    memory_store.put("x", b"1")
    assert Store.open(memory_store.url).get("x") == b"1"
    assert memory_store.process_local


def test_a_copy_in_a_folder_counts_as_new(store: Store, tmp_path: Path) -> None:
    """Otherwise gc would take the copy of an old object for something left behind."""
    store.put("a", b"1")
    os.utime(tmp_path / "store" / "a", (1, 1))
    store.copy("a", "b")
    assert store.info("b").last_modified.year > 2000


def test_half_written_files_are_listed_apart(store: Store, tmp_path: Path) -> None:
    """obstore writes a folder's files beside their place first; a kill leaves them there."""
    store.put("a/x", b"1")
    (tmp_path / "store" / "a" / "x#7").write_bytes(b"half")
    assert [i.path for i in store.list()] == ["a/x"]
    assert [(i.path, i.size) for i in store.staged()] == [("a/x#7", 4)]
    with pytest.raises(InvalidArgumentError, match="not a half-written file"):
        store.remove_staged("a/x")
    store.remove_staged("a/x#7")
    assert list(store.staged()) == []


def test_history_of_writes_is_not_part_of_the_bytes(any_store: Store) -> None:
    any_store.create("x", json.dumps({"a": 1}).encode())
    assert any_store.get("x") == b'{"a": 1}'
