"""A watch outlives its server: every event comes once, in order, whenever the server is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rebus.client import Client, RetryPolicy
from rebus.jobs import status
from rebus.jobs.events import EventLog
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.training_pb2 import Run

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
def test_a_watch_over_killed_servers_loses_and_repeats_nothing(store: Store, tmp_path: Path) -> None:
    documents.create(store, Run(name="runs/x", job=JobStatus(state=JobStatus.SUCCEEDED)))
    log = EventLog(store, "runs/x")
    written = threading.Event()
    server = Server(store)
    # The run has not ended for the servers, yet there is no process for them to recover.
    documents.update(store, Run, "runs/x", lambda run: setattr(run.job, "state", JobStatus.RUNNING))

    def write() -> None:
        for at in range(1, EVENTS + 1):
            log.append("metrics", {"at": at})
            written.wait(0.1)

    writer = threading.Thread(target=write)
    seen: list[int] = []
    with Client(f"127.0.0.1:{server.port}", retry=RetryPolicy(max_seconds=0.5)) as client:
        writer.start()
        for event in client.watch("runs/x"):
            seen.append(event.sequence)
            if len(seen) in {EVENTS // 4 * (kill + 1) for kill in range(KILLS)}:
                documents.update(store, Run, "runs/x", _with_state(JobStatus.SUCCEEDED))
                server.kill()
                server.start()
                documents.update(store, Run, "runs/x", _with_state(JobStatus.RUNNING))
            if len(seen) == EVENTS:
                documents.update(store, Run, "runs/x", _with_state(JobStatus.SUCCEEDED))
    writer.join()
    server.kill()
    assert seen == list(range(1, EVENTS + 1))
    assert status.job_of(documents.get(store, Run, "runs/x")).state == JobStatus.SUCCEEDED


def _with_state(state: JobStatus.State) -> object:
    def change(run: Run) -> None:
        run.job.state = state

    return change
