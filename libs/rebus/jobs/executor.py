"""Executors start, stop and recover jobs. This one runs them as supervised processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Protocol

import psutil

from rebus.errors import AbortedError
from rebus.jobs import status
from rebus.jobs.supervisor import process_path
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus


class Executor(Protocol):
    """Where jobs run."""

    def submit(self, name: str) -> None:
        """Starts the work of a QUEUED job."""
        ...

    def cancel(self, name: str) -> None:
        """Tells the job's process to stop; the job was marked ``cancel_requested`` before."""
        ...

    def recover(self, collection: str) -> None:
        """Brings the jobs of a collection back to the truth after a restart of the service."""
        ...


class LocalExecutor:
    """Runs each job as a worker process under a detached supervisor."""

    def __init__(self, store: Store, cache_dir: Path) -> None:
        self._store = store
        self._cache_dir = cache_dir
        self._children: list[int] = []
        self._lock = threading.Lock()

    def submit(self, name: str) -> None:
        """Starts a supervisor in a session of its own, so that it survives this process."""
        command = [sys.executable, "-m", "rebus.jobs.supervisor", "--store", self._store.url, "--name", name]
        command += ["--cache-dir", str(self._cache_dir)]
        silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        # Not `subprocess`: its objects complain when they go away before their process does, which is the point here.
        child = os.posix_spawn(sys.executable, command, os.environ, file_actions=silent, setsid=True)
        with self._lock:  # and takes those that ended off the process table
            self._children = [pid for pid in self._children if os.waitpid(pid, os.WNOHANG)[0] == 0]
            self._children.append(child)

    def cancel(self, name: str) -> None:
        """Sends SIGTERM to the job's supervisor; a job without a process is ended here."""
        process = self._process(name)
        if process is None:
            status.transition(self._store, name, JobStatus.CANCELLED, message="cancelled before it started")
        else:
            process.send_signal(signal.SIGTERM)

    def recover(self, collection: str) -> None:
        """Starts QUEUED jobs that no process holds; fails RUNNING ones whose processes are gone."""
        for document in documents.list_all(self._store, documents.TYPES[collection]):
            name: str = document.name  # pyright: ignore[reportAttributeAccessIssue]
            state = status.job_of(document).state
            if state in status.TERMINAL or self._process(name) is not None:
                continue
            if state == JobStatus.QUEUED:
                self.submit(name)
            else:
                error = AbortedError("the job's processes are gone: the machine restarted or they were killed")
                status.transition(self._store, name, JobStatus.FAILED, error=error)

    def _process(self, name: str) -> psutil.Process | None:
        """The live supervisor of a job, if this machine has one."""
        try:
            record = json.loads(process_path(self._cache_dir, name).read_text())
            process = psutil.Process(record["pid"])
            alive = process.create_time() == record["create_time"] and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, KeyError, psutil.Error):
            return None
        return process if alive else None
