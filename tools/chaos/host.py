"""All services in a process of its own, over a store that a driver is about to abuse."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from rebus.data.sources import ROOTS_ENV
from rebus.errors import FailedPreconditionError
from rebus.jobs import LocalExecutor, status
from rebus.jobs.kinds import collection_of
from rebus.store import documents
from rebus.v1.common_pb2 import JobStatus
from services.harness.embedded import hosted
from services.harness.runtime import CACHE_ENV, Runtime

START_SECONDS = 120.0
STOP_SECONDS = 60.0
POLL_SECONDS = 1.0


class BoundedExecutor(LocalExecutor):
    """Starts the first ``limit`` jobs of each kind for real; what comes after is cancelled at once, and says so.

    Generated requests start thousands of jobs, and each is two processes.
    """

    def __init__(self, runtime: Runtime, limit: int) -> None:
        super().__init__(runtime.store, runtime.cache_dir)
        self._runtime = runtime
        self._limit = limit
        self._seen: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._started: list[str] = []

    def submit(self, name: str) -> None:
        with self._counting:
            collection = collection_of(name)
            self._seen[collection] += 1
            within = self._seen[collection] <= self._limit
            self._started += [name] if within else []
        if within:
            super().submit(name)
        else:
            message = "not run: this server runs a limited number of jobs"
            status.transition(self._runtime.store, name, JobStatus.CANCELLED, message=message)

    def end(self) -> None:
        """Cancels what still runs and waits for it, so that no process outlives the driver."""
        for name in self._started:
            with suppress(FailedPreconditionError):  # it has ended
                status.request_cancel(self._runtime.store, name)
                self.cancel(name)
        deadline = time.monotonic() + STOP_SECONDS
        while any(map(self._active, self._started)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _active(self, name: str) -> bool:
        document = documents.get(self._runtime.store, documents.type_of(name), name)
        return status.job_of(document).state not in status.TERMINAL


@dataclass(frozen=True)
class Hosted:
    """A running server: where it answers, and its process."""

    endpoint: str
    process: BaseProcess


@contextmanager
def hosting(store_url: str, cache_dir: str, *, max_jobs: int, ingest_root: str) -> Iterator[Hosted]:
    """Runs every service in a process of its own until the block ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, store_url, cache_dir, max_jobs, ingest_root), daemon=False)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_SECONDS):
            raise TimeoutError("the server did not start")
        yield Hosted(ours.recv(), process)
    finally:
        ours.close()
        process.join(2 * STOP_SECONDS)
        if process.is_alive():
            process.kill()


def _serve(connection: Connection, store_url: str, cache_dir: str, max_jobs: int, ingest_root: str) -> None:
    os.environ.update({CACHE_ENV: cache_dir, ROOTS_ENV: ingest_root})
    runtime = Runtime.open(store_url)
    executor = BoundedExecutor(runtime, max_jobs)
    with hosted(store_url, runtime=replace(runtime, executor=executor)) as endpoint:
        connection.send(endpoint)
        with suppress(EOFError):
            connection.recv()
    executor.end()
