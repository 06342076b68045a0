from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from rebus.jobs.events import EventLog
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
        log.append([("log", {"n": size})] * size)
    for after in range(13):
        assert [event.sequence for event in log.read(after)] == list(range(after + 1, 13))


def test_concurrent_writers_share_one_gap_free_numbering(any_store: Store) -> None:
    def write(writer: int) -> None:
        log = EventLog(any_store, "runs/a")
        for index in range(5):
            log.append([("log", {"writer": writer, "index": index, "half": half}) for half in (0, 1)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    events = list(EventLog(any_store, "runs/a").read())
    assert [event.sequence for event in events] == list(range(1, 41))
    for writer in range(4):
        own = [(e.values["index"], e.values["half"]) for e in events if e.values["writer"] == writer]
        assert own == [(i, h) for i in range(5) for h in (0, 1)]
