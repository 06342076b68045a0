"""A watch outlives its server: every event comes once, in order, whenever the server is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from rebus.client import Client, RetryPolicy
from rebus.jobs.events import EventLog
from rebus.jobs.supervisor import process_path
from rebus.store import Store, documents
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
    documents.create(store, Run(name="runs/x", job=JobStatus(state=JobStatus.RUNNING)))
    # This process stands for the job's supervisor, so that a restarted server finds the job alive.
    record = process_path(Runtime.open(store.url).cache_dir, "runs/x")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"pid": os.getpid(), "create_time": psutil.Process().create_time()}))
    log, pause = EventLog(store, "runs/x"), threading.Event()
    server = Server(store)

    def write() -> None:
        for at in range(1, EVENTS + 1):
            log.append([("metrics", {"at": at})])
            pause.wait(0.1)

    writer = threading.Thread(target=write)
    seen: list[int] = []
    with Client(f"127.0.0.1:{server.port}", retry=RetryPolicy(max_seconds=0.5)) as client:
        writer.start()
        for event in client.watch("runs/x"):
            seen.append(event.sequence)
            if len(seen) in {EVENTS // 4 * (kill + 1) for kill in range(KILLS)}:
                server.kill()
                server.start()
            if len(seen) == EVENTS:
                documents.update(store, Run, "runs/x", _succeed)
    writer.join()
    server.kill()
    assert seen == list(range(1, EVENTS + 1))


def _succeed(run: Run) -> None:
    run.job.state = JobStatus.SUCCEEDED
