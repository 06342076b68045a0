"""How a worker records its own end; the processes around it are tested in ``tests/services/test_job_processes.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rebus.errors import AbortedError, RebusError, invalid
from rebus.jobs import JobContext, status, worker
from rebus.jobs.events import EventLog
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobExit, JobStatus
from rebus.v1.training_pb2 import Run

Work = Callable[[Callable[[JobContext], None]], JobStatus]


@pytest.fixture
def work(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Runs a function as a job's work and returns the job's status."""

    def run(function: Callable[[JobContext], None]) -> JobStatus:
        monkeypatch.setattr(worker, "entry_point", lambda name: function)
        name = status.create(store, Run())[0].name
        worker.run(store, name, tmp_path)
        return documents.get(store, Run, name).job

    return run


def test_success(work: Work, store: Store) -> None:
    def body(context: JobContext) -> None:
        context.progress(0.5, "half")
        context.emit("metrics", {"step": 1})
        context.update(Run, lambda run: setattr(run, "step", 1))

    job = work(body)
    assert (job.state, job.progress) == (JobStatus.SUCCEEDED, 1.0)
    run = next(documents.list_all(store, Run))
    assert run.step == 1
    assert [event.kind for event in EventLog(store, run.name).read()] == [
        "state",
        "state",
        "metrics",
        "progress",
        "state",
    ]


def test_a_domain_error_is_kept_whole(work: Work) -> None:
    def body(context: JobContext) -> None:
        raise invalid("sources[0].uri", "no such file")

    job = work(body)
    assert job.state == JobStatus.FAILED
    assert job.error.message == "sources[0].uri: no such file"


def test_an_unexpected_error_keeps_its_last_lines(work: Work, capfd: pytest.CaptureFixture[str]) -> None:
    def body(context: JobContext) -> None:
        raise ZeroDivisionError("oh")

    job = work(body)
    assert (job.state, job.exit.reason) == (JobStatus.FAILED, JobExit.EXCEPTION)
    assert job.error.message.endswith("ZeroDivisionError: oh")
    assert job.exit.last_lines[-1] == "ZeroDivisionError: oh"
    assert "Traceback" in capfd.readouterr().err


def test_stopping_a_cancelled_job_ends_it(work: Work, store: Store) -> None:
    def body(context: JobContext) -> None:
        status.request_cancel(store, context.name)
        context.stop()
        context.check_cancelled()

    job = work(body)
    assert (job.state, job.exit.reason) == (JobStatus.CANCELLED, JobExit.CANCELLED)


def test_stopping_a_job_that_nobody_cancelled_preempts_it(work: Work) -> None:
    def body(context: JobContext) -> None:
        context.stop()
        context.check_cancelled()

    job = work(body)
    assert (job.state, job.exit.reason, job.preemptions) == (JobStatus.PREEMPTED, JobExit.PREEMPTED, 1)
    assert not job.HasField("error")


def test_running_out_of_memory_is_told_from_other_errors(work: Work) -> None:
    def body(context: JobContext) -> None:
        bytearray(1 << 62)

    job = work(body)
    assert (job.state, job.exit.reason) == (JobStatus.FAILED, JobExit.OUT_OF_MEMORY)
    assert job.exit.last_lines[-1].startswith("MemoryError")
    assert job.error.message.startswith("out of memory: ")


def test_an_attempt_that_was_given_up_changes_nothing(work: Work, store: Store) -> None:
    """Its host was taken for lost while it was paused; another one has the job by the time it wakes."""
    refused: list[str] = []

    def body(context: JobContext) -> None:
        status.transition(store, context.name, JobStatus.PREEMPTED)
        status.transition(store, context.name, JobStatus.QUEUED)
        assert status.transition(store, context.name, JobStatus.RUNNING)
        for write in (
            lambda: context.update(Run, lambda run: setattr(run, "step", 7)),
            lambda: (context.progress(0.9), context.flush()),
        ):
            with pytest.raises(AbortedError) as caught:
                write()
            refused.append(str(caught.value))

    job = work(body)
    assert (job.state, job.attempts, job.progress) == (JobStatus.RUNNING, 2, 0.0)
    assert next(documents.list_all(store, Run)).step == 0
    assert all("attempt 1 was given up; the job is RUNNING at attempt 2" in text for text in refused)


def test_events_before_a_failure_are_kept(work: Work, store: Store) -> None:
    def body(context: JobContext) -> None:
        context.emit("log", {"message": "last words"})
        raise RebusError("no")

    work(body)
    kinds = [event.kind for event in EventLog(store, next(documents.list_all(store, Run)).name).read()]
    assert kinds == ["state", "state", "log", "state"]


def test_a_worker_that_finds_its_job_taken_says_so_and_leaves_it(store: Store, tmp_path: Path) -> None:
    name = status.create(store, Run(), host="h")[0].name
    arguments = ["--store", store.url, "--name", name, "--cache-dir", str(tmp_path)]
    assert worker.main([*arguments, "--host", "other"]) == worker.TAKEN
    assert documents.get(store, Run, name).job.state == JobStatus.QUEUED
    status.transition(store, name, JobStatus.RUNNING)
    assert worker.main([*arguments, "--host", "h"]) == worker.TAKEN
    job = documents.get(store, Run, name).job
    assert (job.state, job.attempts) == (JobStatus.RUNNING, 1)
