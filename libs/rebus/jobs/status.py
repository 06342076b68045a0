"""Changes of a job's state, each one compare-and-swap on the resource's document and one event.

QUEUED → RUNNING → SUCCEEDED, FAILED or CANCELLED. RUNNING → PREEMPTED → QUEUED is the way of a job that was
interrupted and goes on by itself; ``requeue`` is the caller's way back from FAILED and CANCELLED.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message

from rebus import tracing
from rebus.errors import AbortedError, AlreadyExistsError, FailedPreconditionError, RebusError
from rebus.job_states import RESUMABLE, TERMINAL
from rebus.jobs import active, hosts
from rebus.jobs.events import EventKind, EventLog
from rebus.status import to_status
from rebus.store import Store, documents, requests
from rebus.v1.common_pb2 import JobExit, JobStatus, Resources

M = TypeVar("M", bound=Message)
State = JobStatus.State


def new_id() -> str:
    """A time-ordered id, so that listings need no index: ``20260131-235959-123-ab12cd``."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}-{secrets.token_hex(3)}"


def job_of(message: Message) -> JobStatus:
    """The job status inside a resource's message."""
    return message.job  # pyright: ignore[reportAttributeAccessIssue]


def create(
    store: Store,
    message: M,
    *,
    request: Message | None = None,
    host: str = "",
    resources: Resources | None = None,
    admit: Callable[[], None] = lambda: None,
) -> tuple[M, bool]:
    """Stores a new QUEUED job and returns it with whether it is new.

    A repeat of the same ``request`` returns the first call's job, also after a crash at any point in between: the
    request's record reserves the job's name first. ``InvalidArgumentError`` if its id was used for another one.
    ``admit`` is called before a new job is stored, and may refuse it by raising.
    """
    collection = documents.collection_of(type(message))
    name = f"{collection}/{new_id()}"
    if request is not None:
        name = requests.claim(store, request, name).name
        if store.exists(documents.path_of(name)):
            return documents.get(store, type(message), name), False
    admit()
    message.name = name  # pyright: ignore[reportAttributeAccessIssue]
    job = job_of(message)
    job.Clear()
    job.state, job.host = JobStatus.QUEUED, host
    if resources is not None:
        job.resources.CopyFrom(resources)
    job.create_time.GetCurrentTime()
    job.traceparent = tracing.traceparent()
    try:
        documents.create(store, message)
    except AlreadyExistsError:
        return documents.get(store, type(message), name), False
    active.add(store, name)
    _log_state(store, name, job)
    return message, True


def transition(
    store: Store,
    name: str,
    state: State,
    *,
    message: str = "",
    error: RebusError | None = None,
    exit: JobExit | None = None,
    attempt: int | None = None,
    host: str | None = None,
) -> bool:
    """Moves a job to ``state`` and logs it; returns whether it did.

    A job that has ended stays as it is, and only a QUEUED one starts: of two workers, one wins. With ``attempt`` (and
    ``host``) nothing changes unless that attempt is the job's latest (and that host looks after it): one that was
    given up for lost and comes back has no say any more.
    """
    changed = False
    job = JobStatus()

    def mutate(document: Message) -> None:
        nonlocal changed, job
        job = job_of(document)
        changed = may_become(job.state, state) and attempt in (None, job.attempts) and host in (None, job.host)
        if changed:
            _apply(job, state, message, error, exit)

    documents.update(store, documents.type_of(name), name, mutate)
    if changed:
        _log_state(store, name, job)
        if state in TERMINAL:
            active.remove(store, name)
    return changed


def may_become(current: State, state: State) -> bool:
    """Whether the state machine has a way from one state to the other, a caller's ``requeue`` left aside."""
    if state == JobStatus.RUNNING:
        return current == JobStatus.QUEUED
    if state == JobStatus.PREEMPTED:
        return current == JobStatus.RUNNING
    if state == JobStatus.QUEUED:
        return current == JobStatus.PREEMPTED
    return current not in TERMINAL


def _apply(job: JobStatus, state: State, message: str, error: RebusError | None, exit: JobExit | None) -> None:
    job.state = state
    job.message = message
    if state == JobStatus.RUNNING:
        job.attempts += 1
        job.ClearField("exit")
        if not job.HasField("start_time"):
            job.start_time.GetCurrentTime()
    if state == JobStatus.PREEMPTED:
        job.preemptions += 1
    if state == JobStatus.QUEUED and not job.host.startswith(hosts.CLUSTER):
        job.host = ""  # whoever is free goes on with it
    if state == JobStatus.SUCCEEDED:
        job.progress = 1.0
    if state in TERMINAL:
        job.end_time.GetCurrentTime()
    if error is not None:
        job.error.CopyFrom(to_status(error))
    if exit is not None:
        job.exit.CopyFrom(exit)


def _log_state(store: Store, name: str, job: JobStatus) -> None:
    EventLog(store, name).append([(EventKind.STATE, _state_values(job))])


def _state_values(job: JobStatus) -> dict[str, Any]:
    values: dict[str, Any] = {"state": JobStatus.State.Name(job.state), "attempt": job.attempts}
    if job.state in RESUMABLE and job.HasField("error"):
        values["error"] = job.error.message
    if job.state != JobStatus.RUNNING and job.exit.reason:
        values["reason"] = JobExit.Reason.Name(job.exit.reason)
    return values


def is_logged(store: Store, name: str, job: JobStatus) -> bool:
    """Whether the log's last ``state`` event tells the state of ``job``.

    A writer changes the document first and logs it then; one that was killed in between has left the log behind.
    """
    last = EventLog(store, name).last_state()
    if last is None:
        return False
    found = last.values["state"], last.values.fields["attempt"].number_value
    return found == (JobStatus.State.Name(job.state), job.attempts)


def repair_log(store: Store, name: str) -> bool:
    """Logs the document's state if the log does not end with it; returns whether it had to."""
    job = job_of(documents.get(store, documents.type_of(name), name))
    return EventLog(store, name).append_state(_state_values(job))


def request_cancel(store: Store, name: str, *, request_key: str = "") -> Message:
    """Marks a job as to be cancelled, once a ``request_key``; ``FailedPreconditionError`` if it has ended."""

    def mutate(document: Message) -> None:
        _require_active(name, job_of(document))
        job_of(document).cancel_requested = True

    return documents.update_once(store, documents.type_of(name), name, mutate, request_key=request_key)[0]


def _require_active(name: str, job: JobStatus) -> None:
    if job.state in TERMINAL:
        raise FailedPreconditionError(f"{name} has ended: {JobStatus.State.Name(job.state)}")


def requeue(store: Store, name: str, *, host: str = "", request_key: str = "") -> bool:
    """Puts a job that failed or was cancelled back into the queue; ``FailedPreconditionError`` in any other state.

    Returns whether it did: a repeat of the same ``request_key`` does nothing.
    """

    def mutate(document: Message) -> None:
        job = job_of(document)
        if job.state not in RESUMABLE:
            found = JobStatus.State.Name(job.state)
            raise FailedPreconditionError(f"{name} is {found}; only FAILED and CANCELLED jobs resume")
        job.state, job.host = JobStatus.QUEUED, host
        job.cancel_requested = False
        job.traceparent = tracing.traceparent()
        job.preemptions = 0
        job.ClearField("error")
        job.ClearField("exit")
        job.ClearField("end_time")

    active.add(store, name)  # first: an entry too many is removed when it is seen, a missing one is not
    document, changed = documents.update_once(store, documents.type_of(name), name, mutate, request_key=request_key)
    if changed:
        _log_state(store, name, job_of(document))
    return changed


def take(store: Store, name: str, host: str, known: str) -> bool:
    """Makes ``host`` look after a QUEUED job that ``known`` looks after now; returns whether it does."""
    taken = False

    def mutate(document: Message) -> None:
        nonlocal taken
        job = job_of(document)
        taken = job.state == JobStatus.QUEUED and job.host in (known, host)
        if taken:
            job.host = host

    documents.update(store, documents.type_of(name), name, mutate)
    return taken


def set_progress(store: Store, name: str, fraction: float, message: str, *, attempt: int | None = None) -> None:
    """Records how far a job is; ``AbortedError`` if ``attempt`` is not its latest."""

    def mutate(document: Message) -> None:
        job = job_of(document)
        require_attempt(name, job, attempt)
        job.progress = min(max(fraction, 0.0), 1.0)
        job.message = message

    documents.update(store, documents.type_of(name), name, mutate)


def require_attempt(name: str, job: JobStatus, attempt: int | None) -> None:
    """``AbortedError`` unless ``attempt`` is the job's latest and under way; ``None`` asks for nothing."""
    if attempt is not None and (attempt, JobStatus.RUNNING) != (job.attempts, job.state):
        state = JobStatus.State.Name(job.state)
        raise AbortedError(f"{name}: attempt {attempt} was given up; the job is {state} at attempt {job.attempts}")
