"""Jobs as processes: they outlive their service, and whatever kills them, their state tells the truth."""

from __future__ import annotations

import json

import psutil
import pytest
from google.protobuf import struct_pb2

from rebus.client import Client
from rebus.errors import AbortedError, FailedPreconditionError, InvalidArgumentError
from rebus.jobs.processes import process_path
from rebus.store import Store
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import CreateIngestionRequest, Ingestion, Source
from services.harness.embedded import hosted
from services.harness.runtime import Runtime
from tests.waiting import until

pytestmark = pytest.mark.slow
WAIT_SECONDS = 60.0


def _request(num_scenes: int, request_id: str = "") -> CreateIngestionRequest:
    settings = struct_pb2.Struct()
    settings.update({"num_scenes": num_scenes, "seed": 1})
    source = Source(reader="scenes", settings=settings)
    return CreateIngestionRequest(
        ingestion=Ingestion(dataset="datasets/scenes", sources=[source]), request_id=request_id
    )


def _supervisor(store: Store, name: str) -> psutil.Process:
    path = process_path(Runtime.open(store.url).cache_dir, name)
    until(path.exists)
    return psutil.Process(json.loads(path.read_text())["pid"])


def _worker(store: Store, name: str) -> psutil.Process:
    supervisor = _supervisor(store, name)
    return until(supervisor.children)[0]


def _wait_running(client: Client, name: str) -> None:
    until(lambda: client.get(name).job.state == JobStatus.RUNNING)


def test_a_job_outlives_its_service(store: Store) -> None:
    with hosted(store.url, ["ingest"]) as endpoint, Client(endpoint) as client:
        name = client.ingestions.CreateIngestion(_request(300)).name
        _wait_running(client, name)
    with hosted(store.url, ["ingest"]) as endpoint, Client(endpoint) as client:
        events: list[int] = []
        ingestion = client.wait(name, on_event=lambda event: events.append(event.sequence))
        assert ingestion.job.attempts == 1
        assert ingestion.num_samples > 0
        assert events == list(range(1, len(events) + 1))
        tail = [event.sequence for event in client.watch(name, after_event=events[-2])]
        assert tail == events[-1:]


def test_a_killed_worker_is_reported_with_its_signal(client: Client, store: Store) -> None:
    name = client.ingestions.CreateIngestion(_request(5000)).name
    _wait_running(client, name)
    _worker(store, name).kill()
    with pytest.raises(AbortedError, match=f"{name}: the worker was killed by SIGKILL"):
        client.wait(name)
    assert client.get(name).job.state == JobStatus.FAILED


def test_a_killed_supervisor_takes_its_worker_along_and_is_found_at_restart(store: Store) -> None:
    with hosted(store.url, ["ingest"]) as endpoint, Client(endpoint) as client:
        name = client.ingestions.CreateIngestion(_request(5000)).name
        _wait_running(client, name)
        worker = _worker(store, name)
        _supervisor(store, name).kill()
        until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    with hosted(store.url, ["ingest"]) as endpoint, Client(endpoint) as client:
        job = client.get(name).job
        assert job.state == JobStatus.FAILED
        assert "processes are gone" in job.error.message


def test_cancel_stops_the_work_and_its_processes(client: Client, store: Store) -> None:
    name = client.ingestions.CreateIngestion(_request(20_000)).name
    _wait_running(client, name)
    worker = _worker(store, name)
    client.cancel(name)
    list(client.watch(name))
    assert client.get(name).job.state == JobStatus.CANCELLED
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(FailedPreconditionError, match="has ended: CANCELLED"):
        client.cancel(name)


def test_a_queued_job_without_process_is_started_by_recovery(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with hosted(store.url, ["ingest"]) as endpoint, Client(endpoint) as client, monkeypatch.context() as patched:
        patched.setattr("rebus.jobs.executor.LocalExecutor.submit", lambda self, name: None)
        name = client.ingestions.CreateIngestion(_request(20)).name
    with hosted(store.url, ["ingest"]) as endpoint, Client(endpoint) as client:
        assert client.wait(name).job.state == JobStatus.SUCCEEDED


def test_a_repeated_request_starts_no_second_job(client: Client) -> None:
    first = client.ingestions.CreateIngestion(_request(20, "once"))
    again = client.ingestions.CreateIngestion(_request(20, "once"))
    assert again.name == first.name
    assert client.wait(first.name).job.attempts == 1


def test_nothing_is_left_behind(client: Client, store: Store) -> None:
    name = client.ingestions.CreateIngestion(_request(20)).name
    client.wait(name)
    path = process_path(Runtime.open(store.url).cache_dir, name)
    until(lambda: not path.exists())
    until(lambda: not [p for p in psutil.process_iter(["cmdline"]) if name in (p.info["cmdline"] or [])])


def test_a_store_that_jobs_would_not_see_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="store: 'memory://x': jobs run in processes of their own"):
        Runtime.open("memory://x")
