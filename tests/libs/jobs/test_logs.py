from __future__ import annotations

from rebus.jobs import logs
from rebus.store import Store


def _writer(store: Store) -> logs.LogWriter:
    return logs.LogWriter(store, "runs/a", chunk_bytes=100, chunks=3)


def _text(store: Store) -> bytes:
    return b"".join(logs.read(store, "runs/a"))


def test_what_was_flushed_is_read_back_and_attempts_follow_each_other(any_store: Store) -> None:
    first = _writer(any_store)
    first.write(b"one\n")
    assert _text(any_store) == b""
    first.flush()
    first.write(b"two\n")
    first.flush()
    assert _text(any_store) == b"one\ntwo\n"
    second = _writer(any_store)
    second.write(b"three\n")
    second.flush()
    assert _text(any_store) == b"one\ntwo\nthree\n"


def test_a_log_keeps_its_end_and_no_more_than_its_bound(any_store: Store) -> None:
    lines = [f"{number:09d}\n".encode() for number in range(60)]
    writer = _writer(any_store)
    for line in lines:
        writer.write(line)
        writer.flush()
        assert sum(info.size for info in any_store.list("runs/a")) <= 400
    assert b"".join(lines).endswith(_text(any_store))
    assert len(_text(any_store)) >= 300
    writer.write(b"x" * 1000)
    writer.flush()
    assert _text(any_store) == b"x" * 300
