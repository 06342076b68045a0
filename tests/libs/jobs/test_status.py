from __future__ import annotations

import pytest

from rebus.errors import FailedPreconditionError, ResourceExhaustedError, invalid
from rebus.jobs import active, status
from rebus.jobs.events import EventLog
from rebus.status import from_status
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobExit, JobStatus
from rebus.v1.training_pb2 import CreateRunRequest, Run


def _states(store: Store, name: str) -> list[str]:
    return [event.values["state"] for event in EventLog(store, name).read() if event.kind == "state"]


def test_a_job_goes_from_queued_to_succeeded(any_store: Store) -> None:
    run, new = status.create(any_store, Run())
    assert new
    assert status.transition(any_store, run.name, JobStatus.RUNNING)
    assert status.transition(any_store, run.name, JobStatus.SUCCEEDED)
    job = documents.get(any_store, Run, run.name).job
    assert (job.state, job.progress, job.attempts) == (JobStatus.SUCCEEDED, 1.0, 1)
    assert job.create_time.ToDatetime() <= job.start_time.ToDatetime() <= job.end_time.ToDatetime()
    assert _states(any_store, run.name) == ["QUEUED", "RUNNING", "SUCCEEDED"]


def test_only_one_of_two_workers_starts_a_job(store: Store) -> None:
    run, _ = status.create(store, Run())
    assert status.transition(store, run.name, JobStatus.RUNNING)
    assert not status.transition(store, run.name, JobStatus.RUNNING)
    assert documents.get(store, Run, run.name).job.attempts == 1


def test_a_final_state_stays(store: Store) -> None:
    run, _ = status.create(store, Run())
    status.transition(store, run.name, JobStatus.RUNNING)
    status.transition(store, run.name, JobStatus.SUCCEEDED)
    assert not status.transition(store, run.name, JobStatus.FAILED, error=invalid("x", "late"))
    with pytest.raises(FailedPreconditionError, match="has ended: SUCCEEDED"):
        status.request_cancel(store, run.name)
    with pytest.raises(FailedPreconditionError, match="is SUCCEEDED; only FAILED and CANCELLED jobs resume"):
        status.requeue(store, run.name)
    assert _states(store, run.name) == ["QUEUED", "RUNNING", "SUCCEEDED"]


def test_an_error_keeps_the_field_it_names(store: Store) -> None:
    run, _ = status.create(store, Run())
    status.transition(store, run.name, JobStatus.RUNNING)
    status.transition(store, run.name, JobStatus.FAILED, error=invalid("recipe.steps", "must be positive"))
    error = from_status(documents.get(store, Run, run.name).job.error)
    assert error.reason == "INVALID_ARGUMENT"
    assert [(v.field, v.description) for v in error.violations] == [("recipe.steps", "must be positive")]

    status.requeue(store, run.name)
    job = documents.get(store, Run, run.name).job
    assert job.state == JobStatus.QUEUED
    assert not job.HasField("error")
    assert not job.HasField("end_time")


def test_a_preempted_job_goes_back_to_the_queue(any_store: Store) -> None:
    run, _ = status.create(any_store, Run(), host="a")
    assert not status.transition(any_store, run.name, JobStatus.PREEMPTED)  # it does not run
    assert not status.transition(any_store, run.name, JobStatus.RUNNING, host="b")
    assert status.transition(any_store, run.name, JobStatus.RUNNING, host="a")
    assert status.transition(any_store, run.name, JobStatus.PREEMPTED, exit=JobExit(reason=JobExit.PREEMPTED))
    assert active.names(any_store) == [run.name]
    assert status.transition(any_store, run.name, JobStatus.QUEUED)
    assert documents.get(any_store, Run, run.name).job.host == ""
    assert status.transition(any_store, run.name, JobStatus.RUNNING)
    job = documents.get(any_store, Run, run.name).job
    assert (job.attempts, job.preemptions, job.HasField("exit")) == (2, 1, False)
    assert _states(any_store, run.name) == ["QUEUED", "RUNNING", "PREEMPTED", "QUEUED", "RUNNING"]


def test_a_job_is_listed_as_active_until_it_ends(any_store: Store) -> None:
    first, second = (status.create(any_store, Run())[0].name for _ in range(2))
    assert active.names(any_store) == sorted([first, second])
    status.transition(any_store, first, JobStatus.CANCELLED)
    assert active.names(any_store) == [second]
    status.requeue(any_store, first)
    assert active.names(any_store) == sorted([first, second])


@pytest.mark.parametrize("state", JobStatus.State.values())
def test_the_state_machine_ends_where_it_should(state: status.State) -> None:
    ways = {other for other in JobStatus.State.values() if status.may_become(state, other)}
    assert bool(ways) == (state not in status.TERMINAL)


def test_a_log_that_a_crash_left_behind_is_completed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = status.create(store, Run())
    with monkeypatch.context() as patched:

        def crash(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(EventLog, "append", crash)
        with pytest.raises(KeyboardInterrupt):
            status.transition(store, run.name, JobStatus.CANCELLED)
    job = documents.get(store, Run, run.name).job
    assert not status.is_logged(store, run.name, job)
    assert [status.repair_log(store, run.name), status.repair_log(store, run.name)] == [True, False]
    assert status.is_logged(store, run.name, job)
    assert _states(store, run.name) == ["QUEUED", "CANCELLED"]


def test_a_queue_that_is_full_refuses_new_jobs_but_not_repeats(store: Store) -> None:
    def full() -> None:
        raise ResourceExhaustedError("full")

    accepted, refused = (CreateRunRequest(run=Run(recipe="a"), request_id=number) for number in "rs")
    first, _ = status.create(store, Run(), request=accepted)
    with pytest.raises(ResourceExhaustedError):
        status.create(store, Run(), request=refused, admit=full)
    assert status.create(store, Run(), request=accepted, admit=full) == (first, False)
    assert status.create(store, Run(), request=refused)[1]


def test_a_repeated_request_returns_the_first_job(any_store: Store) -> None:
    request = CreateRunRequest(run=Run(recipe="a"), request_id="r")
    first, new = status.create(any_store, Run(recipe="a"), request=request)
    again, new_again = status.create(any_store, Run(recipe="a"), request=request)
    assert (new, new_again) == (True, False)
    assert again == first
    other = CreateRunRequest(run=Run(recipe="a"), request_id="other")
    assert status.create(any_store, Run(recipe="a"), request=other)[0].name != first.name


def test_a_request_survives_a_crash_between_reservation_and_document(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = CreateRunRequest(request_id="r")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(documents, "create", crash)
        with pytest.raises(KeyboardInterrupt):
            status.create(store, Run(), request=request)
    first, new = status.create(store, Run(), request=request)
    assert new
    assert status.create(store, Run(), request=request) == (first, False)


def test_ids_are_time_ordered() -> None:
    ids = [status.new_id() for _ in range(50)]
    assert [i[:19] for i in ids] == sorted(i[:19] for i in ids)
    assert len(set(ids)) == 50
