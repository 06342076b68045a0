"""Executors start, stop and recover jobs. This one runs them as supervised processes of this machine."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import psutil

from rebus.errors import NotFoundError, RebusError, ResourceExhaustedError
from rebus.jobs import active, exits, hosts, status
from rebus.jobs.kinds import KINDS, collection_of
from rebus.jobs.preemption import interrupt
from rebus.jobs.processes import (
    ProcessRecord,
    kill_marked,
    machine_lock,
    mark_of,
    process_path,
    read_record,
    write_record,
)
from rebus.jobs.resources import ResourceRequest, claim_of
from rebus.jobs.settings import JobSettings
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus, Resources

log = logging.getLogger("rebus.jobs")
# Age of an ended job after which its entry among the active ones was forgotten rather than about to be removed.
_FORGOTTEN = timedelta(seconds=10)
_STOP_POLL_SECONDS = 0.1


class Executor(Protocol):
    """Where jobs run."""

    @property
    def host(self) -> str:
        """Who looks after the jobs that it accepts: ``JobStatus.host``."""
        ...

    def plan(self, collection: str, asked: ResourceRequest | None) -> Resources:
        """What a new job will be given; ``FailedPreconditionError`` if that can never be had."""
        ...

    def admit(self) -> None:
        """``ResourceExhaustedError`` if no more jobs can wait."""
        ...

    def submit(self, name: str) -> None:
        """Starts the work of a QUEUED job, now or once what it asks for is free."""
        ...

    def cancel(self, name: str) -> None:
        """Tells the job's process to stop; the job was marked ``cancel_requested`` before."""
        ...

    def recover(self, collection: str) -> None:
        """Brings the jobs of a collection back to the truth after a restart of the service, and keeps them there."""
        ...

    def close(self) -> None:
        """Starts nothing any more; called when the service ends."""
        ...


class LocalExecutor:
    """Runs each job as a worker process under a detached supervisor, as many at once as the machine has room for.

    Any number of service processes and supervisors may do this side by side on one machine: they take turns under a
    lock file, and what is running stands in process records in the cache folder. The queue is ``rebus.jobs.active``.
    """

    def __init__(self, store: Store, cache_dir: Path, settings: JobSettings | None = None) -> None:
        self._store = store
        self._cache_dir = cache_dir
        self._settings = settings or JobSettings.from_environment()
        self._capacity = self._settings.capacity()
        self._watch = hosts.HostWatch(store, self._settings.lease_seconds)
        self._collections: set[str] = set()
        self._children: list[int] = []
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._looked = float("-inf")  # when all active jobs were last looked at
        self._host = hosts.host_id(cache_dir)
        self._heartbeat = hosts.Heartbeat(store, self._host, self._settings.lease_seconds)

    @property
    def host(self) -> str:
        return self._host

    def plan(self, collection: str, asked: ResourceRequest | None) -> Resources:
        if asked is None:
            return self._capacity.limit(KINDS[collection].resources.to_proto())
        request = asked.to_proto()
        self._capacity.check(request)
        return request

    def admit(self) -> None:
        waiting = len(active.names(self._store)) - len(self._records())
        if waiting >= self._settings.max_queued:
            raise ResourceExhaustedError(f"{waiting} jobs wait already; at most {self._settings.max_queued} may")

    def submit(self, name: str) -> None:
        active.add(self._store, name)
        self.schedule()

    def cancel(self, name: str) -> None:
        """Sends SIGTERM to the job's supervisor; a job without a process is ended here.

        The supervisor on another host finds ``cancel_requested`` by itself.
        """
        record = read_record(process_path(self._cache_dir, name))
        process = record.process() if record else None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            return
        job = self._job(name)
        if job.state in (JobStatus.QUEUED, JobStatus.PREEMPTED):
            self._end(name, JobStatus.CANCELLED, exits.cancelled(name))
        elif job.host == self._host:
            self.schedule()

    def recover(self, collection: str) -> None:
        """Also lists jobs that a crash kept from being listed as active, and begins to look after all regularly."""
        self._collections.add(collection)
        for document in documents.list_all(self._store, documents.TYPES[collection]):
            if status.job_of(document).state not in status.TERMINAL:
                active.add(self._store, document.name)  # pyright: ignore[reportAttributeAccessIssue]
        self.schedule()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look_after, name="rebus-jobs", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Where this process is its container's first, its end is the end of all: its jobs are told so in time."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(self._settings.tick_seconds)
        if not self._settings.stop_with_service:
            return
        processes = [process for record in self._records().values() if (process := record.process())]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.grace_seconds
        while any(self._alive(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(_STOP_POLL_SECONDS)

    def schedule(self) -> None:
        """Brings active jobs to the truth and starts those that wait, in order, as far as there is room.

        The first that does not fit keeps all behind it waiting, so that small jobs never starve a large one; those
        behind it are looked at once a lease only, so that a long queue costs little.
        """
        with machine_lock(self._cache_dir):
            self._reap()
            records, room, whole = (
                self._records(),
                True,
                time.monotonic() - self._looked >= self._settings.lease_seconds,
            )
            for name in active.names(self._store):
                if not (room or whole):
                    return
                if name in records or self._closed.is_set():
                    continue
                try:
                    if self._settle(name) and room:
                        room = self._try_start(name)
                except NotFoundError:
                    active.remove(self._store, name)  # the resource was deleted
            self._looked = time.monotonic()

    def _look_after(self) -> None:
        while not self._closed.wait(self._settings.tick_seconds):
            try:
                self._heartbeat.beat()
                self.schedule()
            except RebusError as error:
                log.warning("the queue was not looked at: %s", error)

    def _settle(self, name: str) -> bool:
        """Brings a job without a process here to the truth; returns whether it waits to be started here."""
        job = self._job(name)
        if job.state in status.TERMINAL:
            self._forget(name, job)
            return False
        mine, gone = job.host == self._host, self._is_gone(name, job)
        if job.state == JobStatus.RUNNING and (mine or gone):
            self._lose(name, job, by_itself=not mine)
            job = self._job(name)
        if job.state == JobStatus.PREEMPTED and (mine or gone):
            status.transition(self._store, name, JobStatus.QUEUED, attempt=job.attempts)
            job = self._job(name)
        if job.state != JobStatus.QUEUED or not (job.host == self._host or self._may_adopt(name, job)):
            return False
        if job.cancel_requested:
            self._end(name, JobStatus.CANCELLED, exits.cancelled(name))
            return False
        return True

    def _may_adopt(self, name: str, job: JobStatus) -> bool:
        return collection_of(name) in self._collections and (not job.host or self._is_gone(name, job))

    def _is_gone(self, name: str, job: JobStatus) -> bool:
        """Whether the host that looks after the job will not do so any more."""
        if job.host == self._host:
            return False
        record = read_record(process_path(self._cache_dir, name))
        return (record is not None and record.of_earlier_boot) or self._watch.is_gone(job.host)

    def _lose(self, name: str, job: JobStatus, *, by_itself: bool) -> None:
        """Ends an attempt whose supervisor is gone. A machine that went down preempts; a kill is a failure."""
        kill_marked(mark_of(self._store.url, name))
        if job.cancel_requested:
            self._end(name, JobStatus.CANCELLED, exits.cancelled(name))
        elif by_itself:
            ending = exits.lost(f"{job.host or 'the machine'} was restarted or gives no signs of life")
            interrupt(self._store, name, ending, self._settings.max_preemptions, attempt=job.attempts)
        else:
            self._end(name, JobStatus.FAILED, exits.lost("they were killed"), attempt=job.attempts)
        log.warning("%s: its processes are gone", name)

    def _forget(self, name: str, job: JobStatus) -> None:
        """Tidies up after a process that was killed between ending a job and logging it."""
        if datetime.now(UTC) - job.end_time.ToDatetime(tzinfo=UTC) > _FORGOTTEN:
            status.repair_log(self._store, name)
            active.remove(self._store, name)

    def _try_start(self, name: str) -> bool:
        """Starts a job if it fits; returns whether there may be room for more."""
        job = self._job(name)
        gpus = self._capacity.assign(job.resources, (record.claim for record in self._machine_records().values()))
        if gpus is None:
            # What would never fit here is left to other hosts.
            return self._capacity.assign(job.resources, ()) is None
        if process_path(self._cache_dir, name).exists():
            kill_marked(mark_of(self._store.url, name))  # a supervisor was killed: nothing of it may go on
        if status.take(self._store, name, self._host, job.host):
            self._spawn(name, claim_of(job.resources, gpus), gpus)
        return True

    def _spawn(self, name: str, claim: dict[str, object], gpus: tuple[str, ...]) -> None:
        """Starts a supervisor in a session of its own, so that it survives this process."""
        command = [sys.executable, "-m", "rebus.jobs.supervisor", "--store", self._store.url, "--name", name]
        command += ["--cache-dir", str(self._cache_dir), "--host", self._host, "--gpus", ",".join(gpus)]
        environment = {**os.environ, **self._settings.to_environment()}
        silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        # Not `subprocess`: its objects complain when they go away before their process does, which is the point here.
        child = os.posix_spawn(sys.executable, command, environment, file_actions=silent, setsid=True)
        self._children.append(child)
        try:
            write_record(process_path(self._cache_dir, name), ProcessRecord.of(child, claim))
        except psutil.NoSuchProcess:
            return

    def _reap(self) -> None:
        """Takes supervisors that ended off the process table."""
        self._children = [pid for pid in self._children if os.waitpid(pid, os.WNOHANG)[0] == 0]

    def _records(self) -> dict[str, ProcessRecord]:
        """Jobs of this store with a live supervisor here."""
        return {name: record for (folder, name), record in self._machine_records().items() if folder == self._folder}

    def _machine_records(self) -> dict[tuple[Path, str], ProcessRecord]:
        """The same of all stores, which share the machine: (folder of records, job) -> record."""
        found: dict[tuple[Path, str], ProcessRecord] = {}
        for path in self._cache_dir.parent.glob(f"*/{self._folder.name}/*.json"):
            record = read_record(path)
            if record is not None and record.process() is not None:
                found[path.parent, path.stem.replace("--", "/", 1)] = record
        return found

    @property
    def _folder(self) -> Path:
        return process_path(self._cache_dir, "").parent

    def _alive(self, process: psutil.Process) -> bool:
        with machine_lock(self._cache_dir):
            self._reap()
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE

    def _end(self, name: str, state: status.State, ending: exits.Ending, attempt: int | None = None) -> None:
        error, exit = ending
        status.transition(self._store, name, state, error=error, exit=exit, attempt=attempt)

    def _job(self, name: str) -> JobStatus:
        return status.job_of(documents.get(self._store, documents.type_of(name), name))
