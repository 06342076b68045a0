from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.jobs.events import MAX_CHUNK_EVENTS, EventCursor, EventLog
from rebus.store import Store


def test_events_are_numbered_from_one_and_read_back(any_store: Store) -> None:
    log = EventLog(any_store, "runs/a")
    log.append([("state", {"state": "QUEUED"})])
    log.append([])
    log.append([("metrics", {"step": i, "loss": i / 2}) for i in range(3)])
    events = list(log.read())
    assert [event.sequence for event in events] == [1, 2, 3, 4]
    assert events[0].kind == "state"
    assert dict(events[3].values) == {"step": 2.0, "loss": 1.0}


def test_reading_resumes_anywhere_without_loss_or_repeat(store: Store) -> None:
    log = EventLog(store, "runs/a")
    for size in (1, 4, 2, 5):
        log.append([("log", {"message": str(size)})] * size)
    for after in range(13):
        assert [event.sequence for event in log.read(after)] == list(range(after + 1, 13))


def test_concurrent_writers_share_one_gap_free_numbering(any_store: Store) -> None:
    def write(writer: int) -> None:
        log = EventLog(any_store, "runs/a")
        for index in range(5):
            log.append([("metrics", {"writer": writer, "index": index, "half": half}) for half in (0, 1)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    events = list(EventLog(any_store, "runs/a").read())
    assert [event.sequence for event in events] == list(range(1, 41))
    for writer in range(4):
        own = [(e.values["index"], e.values["half"]) for e in events if e.values["writer"] == writer]
        assert own == [(i, h) for i in range(5) for h in (0, 1)]


def test_an_event_has_the_fields_of_its_kind(store: Store) -> None:
    log = EventLog(store, "runs/a")
    with pytest.raises(ValueError, match="kind 'progress' has no message"):
        log.append([("progress", {"progress": 0.5})])
    with pytest.raises(ValueError, match="'surprise' is not a valid EventKind"):
        log.append([("surprise", {})])
    assert not list(log.read())


def test_a_long_append_is_split_and_read_from_any_place(store: Store) -> None:
    log, total = EventLog(store, "runs/a"), 2 * MAX_CHUNK_EVENTS + 5
    log.append([("metrics", {})] * total)
    for after in (0, 1, MAX_CHUNK_EVENTS - 1, MAX_CHUNK_EVENTS, 2 * MAX_CHUNK_EVENTS + 3, total, total + 7):
        assert [event.sequence for event in log.read(after)] == list(range(after + 1, total + 1))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_a_follower_that_reconnects_anywhere_sees_each_event_once(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Two writers append groups of random size; between any two appends the follower reads, or starts anew."""
    folder: Path = tmp_path_factory.mktemp("watch")
    store = Store.open(folder.as_uri())
    writers = [EventLog(store, "runs/a"), EventLog(store, "runs/a")]
    cursor, seen, written = EventCursor(store, "runs/a"), [], 0
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["first", "second", "read", "reconnect", "rewind"]))
        if action in ("first", "second"):
            size = data.draw(st.integers(1, 4))
            writers[action == "second"].append([("metrics", {"n": written + i}) for i in range(size)])
            written += size
        elif action == "reconnect":
            cursor = EventCursor(store, "runs/a", cursor.position)
        elif action == "rewind":
            del seen[data.draw(st.integers(0, len(seen))) :]
            cursor = EventCursor(store, "runs/a", len(seen))
        else:
            seen += cursor.read()
    seen += cursor.read()
    assert [event.sequence for event in seen] == list(range(1, written + 1))
    assert [event.values["n"] for event in seen] == list(range(written))


def test_a_follower_asks_for_the_next_chunk_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(store, "runs/a")
    log.append([("metrics", {})] * 3)
    log.append([("metrics", {})] * 2)
    cursor = EventCursor(store, "runs/a", 5)
    assert cursor.read() == []

    def no_listing(*_: object, **__: object) -> None:
        raise AssertionError("the folder was listed")

    other = EventLog(store, "runs/a")
    other.append([("metrics", {})])
    monkeypatch.setattr(store, "list", no_listing)
    assert [event.sequence for event in cursor.read()] == [6]
    assert cursor.read() == []


def test_an_append_whose_answer_was_lost_is_not_repeated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create = store.create

    def lossy(path: str, data: bytes) -> None:
        create(path, data)
        create(path, data)  # as a client does that got no answer

    monkeypatch.setattr(store, "create", lossy)
    log = EventLog(store, "runs/a")
    for n in range(3):
        log.append([("metrics", {"n": n})])
    assert [event.values["n"] for event in log.read()] == [0, 1, 2]


def test_one_of_many_repairs_appends_the_state(any_store: Store) -> None:
    EventLog(any_store, "runs/a").append([("state", {"state": "RUNNING", "attempt": 1}), ("metrics", {})])
    ended = {"state": "FAILED", "attempt": 1}
    with ThreadPoolExecutor(4) as pool:
        repairs = list(pool.map(lambda _: EventLog(any_store, "runs/a").append_state(ended), range(4)))
    assert sorted(repairs) == [False, False, False, True]
    states = [event.values["state"] for event in EventLog(any_store, "runs/a").read() if event.kind == "state"]
    assert states == ["RUNNING", "FAILED"]


def test_a_follower_may_wait_beyond_the_end(store: Store) -> None:
    log = EventLog(store, "runs/a")
    log.append([("metrics", {})] * 3)
    cursor = EventCursor(store, "runs/a", 5)
    assert cursor.read() == []
    log.append([("metrics", {})] * 4)
    assert [event.sequence for event in cursor.read()] == [6, 7]
