"""What the executor writes into a job's document: the only place that knows the state machine of ``rebus.jobs``."""

from __future__ import annotations

from contextlib import suppress

from rebus.errors import AbortedError, CancelledError, FailedPreconditionError, RebusError
from rebus.jobs import status
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus


def read(store: Store, name: str) -> JobStatus:
    """Where a job stands; ``NotFoundError`` if there is none of that name."""
    return status.job_of(documents.get(store, documents.type_of(name), name))


def current_attempt(job: JobStatus) -> int:
    """The number of the attempt that a job is at, or waits for; counted from 1."""
    return job.attempts + (job.state == JobStatus.QUEUED)


def is_interrupted(job: JobStatus) -> bool:
    """Whether a worker stopped because its pod was told to, though nobody cancelled the job."""
    return job.state == JobStatus.CANCELLED and not job.cancel_requested


def cancelled(store: Store, name: str, message: str) -> None:
    """Ends a job whose caller asked for it."""
    status.transition(store, name, JobStatus.CANCELLED, error=CancelledError(f"{name} was cancelled: {message}"))


def failed(store: Store, name: str, attempt: int, error: RebusError) -> None:
    """Ends a job whose ``attempt`` failed; one that has gone on since stays as it is."""
    if current_attempt(read(store, name)) == attempt:
        status.transition(store, name, JobStatus.FAILED, error=error)


def interrupted(store: Store, name: str, attempt: int, message: str, *, max_attempts: int) -> None:
    """Puts a job whose ``attempt`` the cluster interrupted back into the queue, unless that happens too often.

    Of two services that see the interruption, one moves the job; a kill in between leaves it FAILED, which is true
    and can be resumed.
    """
    if attempt >= max_attempts:
        failed(store, name, attempt, AbortedError(f"interrupted {attempt} times, at last by {message}"))
        return
    failed(store, name, attempt, AbortedError(f"interrupted: {message}"))
    if current_attempt(read(store, name)) == attempt:
        with suppress(FailedPreconditionError):  # another service was first
            status.requeue(store, name)


def waits(store: Store, name: str, job: JobStatus, message: str) -> None:
    """Tells people what a job that has not started waits for."""
    if job.state == JobStatus.QUEUED and job.message != message:
        status.set_progress(store, name, job.progress, message)


def lost(object_name: str) -> RebusError:
    """The error of a running job whose object is gone."""
    return AbortedError(f"the cluster's object {object_name} is gone, and its worker with it")


def log_path(name: str) -> str:
    """Where the last lines of a worker's output are kept, beside its job's document."""
    return f"{name}/log.txt"


def keep_log(store: Store, name: str, lines: bytes) -> None:
    """Keeps the output of the job's last attempt."""
    store.put(log_path(name), lines)
