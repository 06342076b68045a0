"""What the executor writes into a job's document: the only place that knows the state machine of ``rebus.jobs``."""

from __future__ import annotations

from rebus.jobs import exits, status
from rebus.jobs.exits import Ending
from rebus.jobs.preemption import interrupt
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus


def read(store: Store, name: str) -> JobStatus:
    """Where a job stands; ``NotFoundError`` if there is none of that name."""
    return status.job_of(documents.get(store, documents.type_of(name), name))


def current_attempt(job: JobStatus) -> int:
    """The number of the attempt that a job is at, or waits for; counted from 1."""
    return job.attempts + (job.state == JobStatus.QUEUED)


def cancelled(store: Store, name: str) -> None:
    """Ends a job whose caller asked for it."""
    error, exit = exits.cancelled(name)
    status.transition(store, name, JobStatus.CANCELLED, error=error, exit=exit)


def failed(store: Store, name: str, attempt: int, ending: Ending) -> None:
    """Ends a job whose ``attempt`` failed; one that has gone on since stays as it is."""
    job = read(store, name)
    if current_attempt(job) == attempt:
        error, exit = ending
        status.transition(store, name, JobStatus.FAILED, error=error, exit=exit, attempt=job.attempts)


def interrupted(store: Store, name: str, attempt: int, ending: Ending, *, max_preemptions: int) -> None:
    """RUNNING → PREEMPTED; FAILED where that happened too often."""
    interrupt(store, name, ending, max_preemptions, attempt=attempt)


def requeue(store: Store, name: str, attempt: int, host: str) -> None:
    """PREEMPTED → QUEUED: of two services that see it, one does."""
    if status.transition(store, name, JobStatus.QUEUED, attempt=attempt):
        status.take(store, name, host, "")


def waits(store: Store, name: str, job: JobStatus, message: str) -> None:
    """Tells people what a job that has not started waits for."""
    if job.state == JobStatus.QUEUED and job.message != message:
        status.set_progress(store, name, job.progress, message)


def keep_log(store: Store, name: str, attempt: int, lines: bytes) -> None:
    """Keeps the output of an attempt where ``rebus.jobs.logs`` reads it; two services write the same."""
    store.put(f"{name}/logs/{attempt:06d}.txt", lines)
