"""Settings of the local executor; each has an environment variable ``REBUS_JOBS_<NAME>``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from rebus import config
from rebus.jobs.resources import Capacity

PREFIX = "REBUS_JOBS_"


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How the local executor treats its jobs."""

    # Cores, bytes of memory and accelerators for jobs. 0 cores or bytes, -1 accelerators: what the machine has.
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = -1
    # Jobs that may wait at once; one more is refused with RESOURCE_EXHAUSTED.
    max_queued: int = 1000
    # Times that a job may be preempted before it counts as failed; a caller's resume starts the count again.
    max_preemptions: int = 8
    # Seconds between SIGTERM and SIGKILL when a job is cancelled or preempted.
    grace_seconds: float = 20.0
    # Seconds between signs of life, and between looks at the queue when nothing else prompts one.
    tick_seconds: float = 2.0
    # Seconds without a sign of life after which a host's jobs are taken to be lost.
    lease_seconds: float = 30.0
    # Whether the jobs here are told to stop when the service does: true in a container whose first process it is.
    stop_with_service: bool = field(default_factory=lambda: os.getpid() == 1)
    # Bytes in one object of a job's log, and the number of them that are kept.
    log_chunk_bytes: int = 262_144
    log_chunks: int = 64
    # Seconds after which output is durable.
    log_seconds: float = 2.0

    def __post_init__(self) -> None:
        positive = ("grace_seconds", "tick_seconds", "lease_seconds", "log_chunk_bytes", "log_chunks")
        positive += ("log_seconds", "max_queued")
        bad = [name for name in positive if getattr(self, name) <= 0]
        bad += [name for name in ("cpus", "memory_bytes", "max_preemptions") if getattr(self, name) < 0]
        if bad or self.gpus < -1:
            raise ValueError(f"out of range: {', '.join(bad or ['gpus'])}")
        if self.lease_seconds < 3 * self.tick_seconds:
            raise ValueError("lease_seconds must be at least 3 tick_seconds, or one late tick would lose a job")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> JobSettings:
        """The settings that variables name, defaults for the others; errors name the variable."""
        names = {field.name: f"{PREFIX}{field.name.upper()}" for field in dataclasses.fields(cls)}
        values = {name: environ[variable] for name, variable in names.items() if variable in environ}
        return config.build(cls, values, where="REBUS_JOBS")

    def to_environment(self) -> dict[str, str]:
        """Variables from which ``from_environment`` makes the same settings."""
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in dataclasses.asdict(self).items()}

    def capacity(self) -> Capacity:
        """What this machine gives to jobs."""
        machine = Capacity.of_machine()
        return Capacity(
            cpus=self.cpus or machine.cpus,
            memory_bytes=self.memory_bytes or machine.memory_bytes,
            gpus=machine.gpus if self.gpus < 0 else machine.gpus[: self.gpus],
        )
