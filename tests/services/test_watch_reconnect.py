"""A watch outlives its server: every event comes once, in order, whenever the server is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from rebus.client import Client, RetryPolicy
from rebus.jobs import status
from rebus.jobs.events import EventLog
from rebus.jobs.processes import ProcessRecord, process_path, write_record
from rebus.store import Store
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.training_pb2 import Run
from services.harness.runtime import Runtime

EVENTS = 60
KILLS = 3


class Server:
    """A server process on one port, to be killed and started again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "services.training.server",
            "--port",
            str(self.port),
            "--store",
            self._store.url,
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        assert self.process.stderr is not None
        line = next(line for line in self.process.stderr if "serving" in line)
        self.port = int(line.split(" on port ")[1].split(",")[0])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.mark.slow
def test_a_watch_over_killed_servers_loses_and_repeats_nothing(store: Store) -> None:
    runtime = Runtime.open(store.url)
    name = status.create(store, Run(), host=runtime.executor.host)[0].name
    status.transition(store, name, JobStatus.RUNNING)
    # This process stands for the job's supervisor, so that a restarted server finds the job alive.
    write_record(process_path(runtime.cache_dir, name), ProcessRecord.of(os.getpid(), {}))
    log, pause = EventLog(store, name), threading.Event()
    server = Server(store)

    def write() -> None:
        for at in range(1, EVENTS + 1):
            log.append([("metrics", {"at": at})])
            pause.wait(0.1)

    writer = threading.Thread(target=write)
    seen: list[int] = []
    with Client(f"127.0.0.1:{server.port}", retry=RetryPolicy(max_seconds=0.5)) as client:
        writer.start()
        for event in client.watch(name):
            seen.append(event.sequence)
            if len(seen) in {EVENTS // 4 * (kill + 1) for kill in range(KILLS)}:
                server.kill()
                server.start()
            if len(seen) == 2 + EVENTS:
                status.transition(store, name, JobStatus.SUCCEEDED)
    writer.join()
    server.kill()
    # QUEUED, RUNNING, what was written, SUCCEEDED.
    assert seen == list(range(1, 2 + EVENTS + 1 + 1))
