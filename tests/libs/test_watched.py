"""Files that are rotated under a running process."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from rebus.errors import InvalidArgumentError, invalid
from rebus.watched import MAX_FILE_BYTES, Watched


def parse(*contents: bytes) -> str:
    if len(set(contents)) > 1 or not contents[0]:
        raise invalid("files", "they do not belong together")
    return contents[0].decode()


def watched(*paths: Path, interval: float = 0) -> Watched[str]:
    return Watched(paths, parse, field="files", interval=interval)


def test_a_change_is_seen_however_it_is_made(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("one")
    file = watched(path)
    assert file.value == "one"
    path.write_text("written again")
    assert file.value == "written again"
    other.write_text("replaced")
    other.replace(path)
    assert file.value == "replaced"


def test_a_change_behind_symbolic_links_is_seen(tmp_path: Path) -> None:
    """As Kubernetes changes a mounted Secret: a link to a folder is replaced."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "file").symlink_to("data/file")
    file = watched(tmp_path / "file")
    assert file.value == "one"
    (tmp_path / "new").symlink_to("two")
    os.replace(tmp_path / "new", tmp_path / "data")
    assert file.value == "two"


def test_half_a_change_leaves_what_was_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = tmp_path / "cert", tmp_path / "key"
    for path in paths:
        path.write_text("old")
    pair = watched(*paths)
    paths[0].write_text("newer")
    assert [pair.value, pair.value, pair.value] == ["old"] * 3
    assert caplog.text.count("cert, key changed and is not usable") == 1
    paths[1].write_text("newer")
    assert pair.value == "newer"
    paths[0].unlink()
    assert pair.value == "newer"
    assert "cannot read" in caplog.text


def test_a_second_write_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    now = path.stat().st_mtime_ns
    file = watched(path)
    assert file.value == "one"
    path.write_text("two")
    os.utime(path, ns=(now, now))
    assert file.value == "two"


def test_the_files_are_not_looked_at_more_often_than_said(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    file = watched(path, interval=3600)
    path.write_text("other")
    assert file.value == "one"


def test_at_first_a_wrong_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^files: cannot read .*missing: No such file") as caught:
        watched(tmp_path / "missing")
    assert [violation.field for violation in caught.value.violations] == ["files"]
    (tmp_path / "large").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(InvalidArgumentError, match=f"is larger than {MAX_FILE_BYTES} bytes"):
        watched(tmp_path / "large")


def test_threads_see_old_or_new(tmp_path: Path) -> None:
    paths = tmp_path / "a", tmp_path / "b"
    for path in paths:
        path.write_text("0")
    pair, seen, stop = watched(*paths), set[str](), threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(pair.value)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(1, 20):
        for path in paths:
            path.write_text(str(i))
    assert pair.value == "19"
    stop.set()
    for thread in threads:
        thread.join()
    assert seen <= {str(i) for i in range(20)}
