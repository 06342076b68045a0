"""How a worker records its own end; the processes around it are tested in ``test_processes``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rebus.errors import RebusError, invalid
from rebus.jobs import JobContext, status, worker
from rebus.jobs.events import EventLog
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus
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
    assert job.state == JobStatus.FAILED
    assert job.error.message.endswith("ZeroDivisionError: oh")
    assert "Traceback" in capfd.readouterr().err


def test_stopping_ends_as_cancelled(work: Work) -> None:
    def body(context: JobContext) -> None:
        context.stop()
        context.check_cancelled()

    assert work(body).state == JobStatus.CANCELLED


def test_events_before_a_failure_are_kept(work: Work, store: Store) -> None:
    def body(context: JobContext) -> None:
        context.emit("log", {"line": "last words"})
        raise RebusError("no")

    work(body)
    kinds = [event.kind for event in EventLog(store, next(documents.list_all(store, Run)).name).read()]
    assert kinds == ["state", "state", "log", "state"]
