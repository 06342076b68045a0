"""Which processes of this machine belong to which job: records in the cache folder, and a mark in the environment."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rebus.jobs.hosts import boot_id

# Set for a worker and so for all it starts: ``<store URL> <job>``.
JOB_ENV = "REBUS_JOB"


@dataclass(frozen=True, kw_only=True)
class ProcessRecord:
    """The supervisor of a job: what tells it from a later process of the same id, and what its job holds."""

    pid: int
    # Seconds since the epoch, as psutil gives them.
    create_time: float
    boot_id: str
    hostname: str
    # See ``resources.claim_of``.
    claim: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, pid: int, claim: Mapping[str, object]) -> ProcessRecord:
        """Of a live process; ``psutil.NoSuchProcess`` if it is gone."""
        created = psutil.Process(pid).create_time()
        return cls(pid=pid, create_time=created, boot_id=boot_id(), hostname=socket.gethostname(), claim=claim)

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = self.boot_id == boot_id() and process.create_time() == self.create_time
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    @property
    def of_earlier_boot(self) -> bool:
        """Whether this very machine was started again since."""
        return self.hostname == socket.gethostname() and self.boot_id != boot_id()


def process_path(cache_dir: Path, name: str) -> Path:
    """The file that tells which process of this machine supervises the job."""
    return cache_dir / "jobs" / f"{name.replace('/', '--')}.json"


def read_record(path: Path) -> ProcessRecord | None:
    """The record in a file, if there is a whole one."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return ProcessRecord(**values)
    except (OSError, ValueError, TypeError):
        return None


def write_record(path: Path, record: ProcessRecord) -> None:
    """Replaces the record atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(dataclasses.asdict(record)))
    temporary.replace(path)


@contextmanager
def machine_lock(cache_dir: Path) -> Iterator[None]:
    """One at a time on this machine, across stores, processes and threads: to start jobs and to change records."""
    cache_dir.parent.mkdir(parents=True, exist_ok=True)
    with (cache_dir.parent / "jobs.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def register(cache_dir: Path, name: str, claim: Mapping[str, object]) -> bool:
    """Makes this process the supervisor of a job; False if another live one is.

    Who starts a supervisor records it too, and may be killed before it does.
    """
    path = process_path(cache_dir, name)
    with machine_lock(cache_dir):
        record = read_record(path)
        if record is not None and record.pid != os.getpid() and record.process() is not None:
            return False
        write_record(path, ProcessRecord.of(os.getpid(), claim))
        return True


def mark_of(store_url: str, name: str) -> str:
    """The value of ``REBUS_JOB`` in the processes of a job."""
    return f"{store_url} {name}"


def kill_marked(mark: str) -> int:
    """SIGKILL to every process of this machine that carries a job's mark; how many there were.

    Finds what no parent holds any more: workers whose supervisor was killed, and what they had started.
    """
    killed = 0
    for process in psutil.process_iter():
        try:
            if process.environ().get(JOB_ENV) == mark and process.pid != os.getpid():
                process.kill()
                killed += 1
        except (psutil.Error, OSError):
            continue
    return killed


def kill_descendants() -> None:
    """SIGKILL to everything below this process."""
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.Error:
            continue
