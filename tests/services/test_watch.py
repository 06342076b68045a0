"""Watching a job: whatever the connection does, each event arrives once."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from rebus.jobs import LocalExecutor, status
from rebus.jobs.events import EventLog
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobEvent, JobStatus
from rebus.v1.training_pb2 import Run
from services.harness import runtime as harness
from services.harness.runtime import Runtime

NUM_APPENDS = 30


async def _watch(runtime: Runtime, name: str, rng: random.Random) -> tuple[list[JobEvent], int]:
    """All events of a job over connections that break at random, and how many there were."""
    seen: list[JobEvent] = []
    connections = 0
    while True:
        connections += 1
        left = rng.randrange(1, 20)
        async with aclosing(runtime.watch(name, len(seen))) as events:
            async for event in events:
                seen.append(event)
                left -= 1
                if not left:
                    break
            else:
                return seen, connections


@pytest.mark.parametrize("seed", range(3))
def test_connections_that_break_anywhere_lose_and_repeat_nothing(any_store: Store, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    runtime = Runtime(any_store, LocalExecutor(any_store, tmp_path), tmp_path)
    name = status.create(any_store, Run())[0].name
    status.transition(any_store, name, JobStatus.RUNNING)

    def write(writer: int, sizes: list[int]) -> None:
        log = EventLog(any_store, name)
        for number, size in enumerate(sizes):
            log.append([("metrics", {"writer": writer, "number": number, "of": size})] * size)

    sizes = [[rng.randrange(1, 5) for _ in range(NUM_APPENDS)] for _ in range(2)]
    writers = [threading.Thread(target=write, args=(writer, sizes[writer])) for writer in range(2)]

    def finish() -> None:
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join()
        status.transition(any_store, name, JobStatus.SUCCEEDED)

    ending = threading.Thread(target=finish)
    ending.start()
    seen, connections = asyncio.run(_watch(runtime, name, rng))
    ending.join()
    print(f"seed {seed}: {len(seen)} events over {connections} connections")
    assert [event.sequence for event in seen] == list(range(1, 4 + sum(map(sum, sizes))))
    for writer in range(2):
        own = [int(e.values["number"]) for e in seen if e.kind == "metrics" and e.values["writer"] == writer]
        assert own == [number for number, size in enumerate(sizes[writer]) for _ in range(size)]
    assert seen[-1].values["state"] == "SUCCEEDED"


def test_the_end_is_told_though_its_writer_was_killed_before_it_could(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "WATCH_REPAIR_SECONDS", 0.5)
    name = status.create(store, Run())[0].name
    documents.update(store, Run, name, lambda run: setattr(run.job, "state", JobStatus.CANCELLED))

    async def follow(after: int) -> list[str]:
        return [event.values["state"] async for event in Runtime.open(store.url).watch(name, after)]

    assert asyncio.run(follow(0)) == ["QUEUED", "CANCELLED"]
    assert asyncio.run(follow(2)) == []
