"""Changes of a job's state, each one compare-and-swap on the resource's document and one event."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message

from rebus import tracing
from rebus.errors import AlreadyExistsError, FailedPreconditionError, RebusError
from rebus.jobs.events import EventLog
from rebus.status import to_status
from rebus.store import Store, documents, requests
from rebus.v1.common_pb2 import JobStatus

M = TypeVar("M", bound=Message)
State = JobStatus.State
TERMINAL = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)
RESUMABLE = (JobStatus.FAILED, JobStatus.CANCELLED)


def new_id() -> str:
    """A time-ordered id, so that listings need no index: ``20260131-235959-123-ab12cd``."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}-{secrets.token_hex(3)}"


def job_of(message: Message) -> JobStatus:
    """The job status inside a resource's message."""
    return message.job  # pyright: ignore[reportAttributeAccessIssue]


def create(store: Store, message: M, *, request: Message | None = None) -> tuple[M, bool]:
    """Stores a new QUEUED job and returns it with whether it is new.

    A repeat of the same ``request`` returns the first call's job, also after a crash at any point in between: the
    request's record reserves the job's name first. ``InvalidArgumentError`` if its id was used for another one.
    """
    collection = next(key for key, cls in documents.TYPES.items() if cls is type(message))
    name = f"{collection}/{new_id()}"
    if request is not None:
        name = requests.claim(store, request, name).name
    message.name = name  # pyright: ignore[reportAttributeAccessIssue]
    job = job_of(message)
    job.Clear()
    job.state = JobStatus.QUEUED
    job.create_time.GetCurrentTime()
    job.traceparent = tracing.traceparent()
    try:
        documents.create(store, message)
    except AlreadyExistsError:
        return documents.get(store, type(message), name), False
    EventLog(store, name).append([("state", {"state": "QUEUED"})])
    return message, True


def transition(store: Store, name: str, state: State, *, message: str = "", error: RebusError | None = None) -> bool:
    """Moves a job to ``state`` and logs it; returns whether it did.

    A job that has ended stays as it is, and only a QUEUED one starts: of two workers, one wins.
    """
    changed = False

    def mutate(document: Message) -> None:
        nonlocal changed
        job = job_of(document)
        changed = job.state == JobStatus.QUEUED if state == JobStatus.RUNNING else job.state not in TERMINAL
        if changed:
            _apply(job, state, message, error)

    documents.update(store, documents.type_of(name), name, mutate)
    if changed:
        values: dict[str, Any] = {"state": JobStatus.State.Name(state)}
        if error is not None:
            values["error"] = str(error)
        EventLog(store, name).append([("state", values)])
    return changed


def _apply(job: JobStatus, state: State, message: str, error: RebusError | None) -> None:
    job.state = state
    job.message = message
    if state == JobStatus.RUNNING:
        job.attempts += 1
        if not job.HasField("start_time"):
            job.start_time.GetCurrentTime()
    if state == JobStatus.SUCCEEDED:
        job.progress = 1.0
    if state in TERMINAL:
        job.end_time.GetCurrentTime()
    if error is not None:
        job.error.CopyFrom(to_status(error))


def request_cancel(store: Store, name: str, *, request_key: str = "") -> Message:
    """Marks a job as to be cancelled, once a ``request_key``; ``FailedPreconditionError`` if it has ended."""

    def mutate(document: Message) -> None:
        _require_active(name, job_of(document))
        job_of(document).cancel_requested = True

    return documents.update_once(store, documents.type_of(name), name, mutate, request_key=request_key)[0]


def _require_active(name: str, job: JobStatus) -> None:
    if job.state in TERMINAL:
        raise FailedPreconditionError(f"{name} has ended: {JobStatus.State.Name(job.state)}")


def requeue(store: Store, name: str, *, request_key: str = "") -> bool:
    """Puts a job that failed or was cancelled back into the queue; ``FailedPreconditionError`` in any other state.

    Returns whether it did: a repeat of the same ``request_key`` does nothing.
    """

    def mutate(document: Message) -> None:
        job = job_of(document)
        if job.state not in RESUMABLE:
            found = JobStatus.State.Name(job.state)
            raise FailedPreconditionError(f"{name} is {found}; only FAILED and CANCELLED jobs resume")
        job.state = JobStatus.QUEUED
        job.cancel_requested = False
        job.traceparent = tracing.traceparent()
        job.ClearField("error")
        job.ClearField("end_time")

    _, changed = documents.update_once(store, documents.type_of(name), name, mutate, request_key=request_key)
    if changed:
        EventLog(store, name).append([("state", {"state": "QUEUED"})])
    return changed


def set_progress(store: Store, name: str, fraction: float, message: str) -> None:
    """Records how far a job is."""

    def mutate(document: Message) -> None:
        job = job_of(document)
        job.progress = min(max(fraction, 0.0), 1.0)
        job.message = message

    documents.update(store, documents.type_of(name), name, mutate)
