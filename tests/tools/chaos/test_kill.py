"""A few rounds of the driver, and that it would notice what it looks for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rebus.jobs.events import EventLog
from rebus.store import Store, manifests
from services.harness.runtime import Runtime
from tools.chaos import kill, victim


@pytest.mark.slow
@pytest.mark.parametrize("where", [[], ["--seaweed"]], ids=["file", "s3"])
def test_a_few_rounds_lose_nothing(where: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert kill.main(["--rounds", "4", "--seed", "7", *where]) == 0
    lines = capfd.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    assert lines[0] == "seed 7"
    assert summary["acknowledged"] > 0
    assert summary["jobs"] > 0
    assert (summary["lost"], summary["torn"], summary["untruthful"]) == (0, 0, 0)


@pytest.fixture
def driver(store: Store) -> kill.Driver:
    return kill.Driver(Runtime.open(store.url), seed=1)


def _lines(store: Store, capsys: pytest.CaptureFixture[str], *operations: str) -> kill.Lines:
    writer = victim.Victim(store, 0, random.Random(1))
    for operation in operations:
        getattr(writer, operation)()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_lost_and_a_torn_object_are_noticed(
    driver: kill.Driver, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _lines(store, capsys, "put", "put", "put", "put")
    driver._check_puts(lines)
    assert driver.tally.is_clean
    first, last = lines[0]["path"], lines[-1]["path"]
    assert first != last
    store.delete(first)
    store.put(last, store.get(last)[:-1])
    driver._check_puts(lines)
    assert driver.tally.lost == [f"{first}: acknowledged, not there"]
    assert driver.tally.torn == [f"{last}: not what anybody wrote"]
    driver.tally.lost.clear()
    store.put(last, victim.payload(random.Random(2)))
    driver._check_puts(lines)
    assert f"{last}: an older write is there" in driver.tally.lost


def test_a_torn_folder_is_noticed(driver: kill.Driver, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _lines(store, capsys, "publish", "publish")
    driver._check_published(lines)
    assert driver.tally.is_clean
    one, other = lines[0]["folder"], lines[2]["folder"]
    store.put(f"{one}/1", b"else")
    store.delete(f"{other}/{manifests.MANIFEST}")
    driver._check_published(lines)
    assert driver.tally.torn == [f"{one}/1: stored bytes were altered"]
    assert driver.tally.lost == [f"{other}: acknowledged, not published"]


def test_a_lost_and_a_repeated_event_are_noticed(
    driver: kill.Driver, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _lines(store, capsys, "append", "append", "append")
    driver._check_events(0, lines)
    assert driver.tally.is_clean
    lost = {"operation": "append", "done": True, "writer": 0, "number": 77}
    again = {"writer": lines[0]["writer"], "number": lines[0]["number"], "half": 0}
    EventLog(store, "runs/chaos-0").append([("metrics", again)])
    driver._check_events(0, [*lines, lost])
    assert [line.partition(" was")[0] for line in driver.tally.lost] == [
        f"runs/chaos-0: event ({again['writer']}, {again['number']})",
        "runs/chaos-0: event (0, 77)",
    ]


def test_a_job_without_result_and_one_that_failed_by_itself_are_noticed(driver: kill.Driver, store: Store) -> None:
    from rebus.jobs import exits, status
    from rebus.v1.common_pb2 import JobStatus

    hollow, failed = (status.create(store, victim.ingestion(n).ingestion)[0].name for n in (1, 2))
    status.transition(store, hollow, JobStatus.SUCCEEDED)
    error, exit = exits.of_process(3, [], oom_killed=False)
    status.transition(store, failed, JobStatus.FAILED, error=error, exit=exit)
    assert list(driver._contradictions(hollow, "nothing")) == ["succeeded without a result"]
    assert list(driver._contradictions(failed, "worker")) == [
        "is FAILED for EXCEPTION: the worker ended with exit code 3: no output"
    ]


def test_a_payload_shows_whether_it_is_whole(tmp_path: Path) -> None:
    data = victim.payload(random.Random(3))
    assert victim.is_whole(data)
    assert not victim.is_whole(data[:-1])
