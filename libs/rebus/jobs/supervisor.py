"""Watches one worker process and records its end where the worker could not: ``python -m rebus.jobs.supervisor``.

The supervisor is detached from the service that starts it, so a job outlives a restart of its service; it imports
nothing heavy, so a hundred of them cost little. While the worker runs, it keeps the worker's output in the store,
gives signs of life for its host, and looks whether the job was cancelled through another host or given to one.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rebus.errors import RebusError, UnavailableError
from rebus.jobs import exits, hosts, status
from rebus.jobs.executor import LocalExecutor
from rebus.jobs.logs import LogWriter
from rebus.jobs.oom import OomWatch
from rebus.jobs.preemption import interrupt
from rebus.jobs.processes import JOB_ENV, kill_descendants, mark_of, process_path, read_record, register
from rebus.jobs.resources import claim_of
from rebus.jobs.settings import JobSettings
from rebus.jobs.tracing import traced
from rebus.jobs.worker import TAKEN
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus

T = TypeVar("T")
TAIL_LINES = 200
READ_BYTES = 65_536
DRAIN_SECONDS = 5.0
# How long the end of a job waits for a store that does not answer.
PATIENCE_SECONDS = 600.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """One job's worker, from its start to its recorded end."""

    def __init__(
        self, store: Store, name: str, cache_dir: Path, settings: JobSettings, host: str, gpus: str = ""
    ) -> None:
        self._store, self._name, self._cache_dir, self._settings, self._host = store, name, cache_dir, settings, host
        self._log = LogWriter(store, name, chunk_bytes=settings.log_chunk_bytes, chunks=settings.log_chunks)
        self._gpus = gpus
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._oom = OomWatch()
        self._heartbeat = hosts.Heartbeat(store, host, settings.lease_seconds)
        self._stopping = threading.Event()
        self._given_up = False
        self._ended = threading.Event()
        self._worker: subprocess.Popen[bytes] | None = None

    def run(self) -> bool:
        """Runs the worker to its end and records it; returns whether the job was left to go on later."""
        job = patiently(self._job)
        if job.state != JobStatus.QUEUED or job.host != self._host:
            return True  # another supervisor has it
        if not register(
            self._cache_dir, self._name, claim_of(job.resources, tuple(filter(None, self._gpus.split(","))))
        ):
            return True
        attempt = job.attempts + 1
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._worker = worker = self._start()
        if self._stopping.is_set():
            self._stop()
        threads = [threading.Thread(target=self._drain, args=(worker,), daemon=True)]
        threads.append(threading.Thread(target=self._tick, args=(attempt,), daemon=True))
        for thread in threads:
            thread.start()
        code = worker.wait()
        oom_killed = self._oom.rose()
        self._ended.set()
        _kill_all_below()
        for thread in threads:
            thread.join(DRAIN_SECONDS)
        self._flush()
        return False if self._given_up else patiently(lambda: self._conclude(code, attempt, oom_killed))

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rebus.jobs.worker", "--store", self._store.url, "--name", self._name]
        command += ["--cache-dir", str(self._cache_dir), "--host", self._host]
        environment = {**os.environ, JOB_ENV: mark_of(self._store.url, self._name), "PYTHONUNBUFFERED": "1"}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=_die_with(os.getpid()),
            start_new_session=True,
        )

    def _stop(self) -> None:
        """SIGTERM to the worker, whose own children are its own to stop; after the grace, SIGKILL to all of them."""
        first = not self._stopping.is_set()
        self._stopping.set()
        if self._worker is None or self._worker.poll() is not None:
            return
        self._worker.send_signal(signal.SIGTERM)
        if first:
            timer = threading.Timer(self._settings.grace_seconds, self._kill)
            timer.daemon = True
            timer.start()

    def _kill(self) -> None:
        if not self._ended.is_set():
            kill_descendants()

    def _drain(self, worker: subprocess.Popen[bytes]) -> None:
        """Takes the worker's output until all who could write to it are gone."""
        assert worker.stdout is not None
        rest = b""
        while data := os.read(worker.stdout.fileno(), READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            self._tail.extend(line.decode(errors="replace") + "\n" for line in lines)
            rest = rest[-READ_BYTES:]
            try:
                self._log.write(data)
            except RebusError:
                continue  # a store that fails must not stop the worker, which would wait for its output to be read
        self._tail.append(rest.decode(errors="replace"))
        worker.stdout.close()

    def _tick(self, attempt: int) -> None:
        flushed = time.monotonic()
        while not self._ended.wait(min(self._settings.tick_seconds, self._settings.log_seconds)):
            self._oom.tick()
            if time.monotonic() - flushed >= self._settings.log_seconds:
                self._flush()
                flushed = time.monotonic()
            try:
                self._heartbeat.beat()
                self._look(self._job(), attempt)
            except RebusError:
                continue  # the store does not answer; the next tick asks again

    def _look(self, job: JobStatus, attempt: int) -> None:
        if job.cancel_requested and not self._stopping.is_set():
            self._stop()
        if job.attempts > attempt:
            self._given_up = True  # another host took this one for lost
            self._kill()

    def _conclude(self, code: int, attempt: int, oom_killed: bool) -> bool:
        """Ends the job of a worker that did not do so itself; a state that is final stays.

        Returns whether the job was left to go on later.
        """
        job = self._job()
        if code == TAKEN:
            return False  # whatever the state is, it is not this worker's doing
        if job.state in (*status.TERMINAL, JobStatus.PREEMPTED) or job.host != self._host:
            return job.state == JobStatus.PREEMPTED
        started = job.state == JobStatus.RUNNING
        current = attempt if started else attempt - 1
        if job.cancel_requested:
            self._end(JobStatus.CANCELLED, exits.cancelled(self._name), current)
        elif self._stopping.is_set() or code == -signal.SIGTERM:
            if started:
                ending = exits.preempted(self._name)
                interrupt(self._store, self._name, ending, self._settings.max_preemptions, attempt=current)
            return True
        elif started or code:
            self._end(JobStatus.FAILED, exits.of_process(code, list(self._tail), oom_killed=oom_killed), current)
        return False

    def _end(self, state: status.State, ending: exits.Ending, attempt: int) -> None:
        error, exit = ending
        status.transition(self._store, self._name, state, error=error, exit=exit, attempt=attempt, host=self._host)

    def _flush(self) -> None:
        try:
            self._log.flush()
        except RebusError:
            return  # stays to be written

    def _job(self) -> JobStatus:
        return status.job_of(documents.get(self._store, documents.type_of(self._name), self._name))


def supervise(store_url: str, name: str, cache_dir: Path, host: str, gpus: str = "") -> int:
    """Supervises one job, then starts those that waited for what it held."""
    settings = JobSettings.from_environment()
    store = Store.open(store_url)
    interrupted = Supervisor(store, name, cache_dir, settings, host, gpus).run()
    path = process_path(cache_dir, name)
    record = read_record(path)
    if record is not None and record.pid == os.getpid():
        path.unlink(missing_ok=True)
    if not interrupted:  # else this machine may be going down: who is there after it goes on
        LocalExecutor(store, cache_dir, settings).schedule()
    return 0


def patiently(function: Callable[[], T]) -> T:
    """Calls ``function`` until the store answers, for a bounded time."""
    pause, deadline = 0.5, time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return function()
        except UnavailableError:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 15.0)


def _kill_all_below() -> None:
    """What a worker leaves behind ends with it; as its subreaper, this process inherits all of that."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        kill_descendants()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


def _die_with(parent: int) -> Callable[[], None]:
    """Asks Linux to kill the worker if its supervisor dies, so that no orphan goes on writing."""

    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be asked, and nobody would tell
            os._exit(1)

    return prepare


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--cache-dir", required=True, type=Path)
    parser.add_argument("--host", required=True, help="who looks after the job")
    parser.add_argument("--gpus", default="", help="accelerators of the job, as CUDA_VISIBLE_DEVICES names them")
    args = parser.parse_args(argv)
    os.umask(0o077)
    with traced("supervisor", args.store, args.name):
        return supervise(args.store, args.name, args.cache_dir, args.host, args.gpus)


if __name__ == "__main__":
    raise SystemExit(main())
