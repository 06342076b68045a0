"""What becomes of a job that was interrupted through no fault of its own."""

from __future__ import annotations

from rebus.jobs import status
from rebus.jobs.exits import Ending
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus


def interrupt(store: Store, name: str, ending: Ending, max_preemptions: int, *, attempt: int | None = None) -> bool:
    """RUNNING → PREEMPTED, from where it goes on by itself; returns whether the state changed.

    FAILED where it was preempted too often already. ``ending`` says what happened.
    """
    error, exit = ending
    job = status.job_of(documents.get(store, documents.type_of(name), name))
    if job.preemptions >= max_preemptions:
        return status.transition(store, name, JobStatus.FAILED, error=error, exit=exit, attempt=attempt)
    return status.transition(store, name, JobStatus.PREEMPTED, message=str(error), exit=exit, attempt=attempt)
