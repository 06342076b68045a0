"""One trace from a pipeline's step to the worker of the job it starts, across real processes and a real collector."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from rebus.client import Client
from rebus.store import Store
from rebus.v1 import dataset_pb2_grpc
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import CreateIngestionRequest, Ingestion, Source
from services.harness.embedded import hosted
from tests.services.telemetry.collector import Collector, collecting
from tests.waiting import until

pytestmark = pytest.mark.slow
WAIT_SECONDS = 240.0
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
STEP = """
from pipelines import steps
steps.ingest("scenes", [{"reader": "scenes", "settings": {"num_scenes": 5, "seed": 1}}], 0.1, "")
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@contextmanager
def _server(store_url: str, environment: dict[str, str]) -> Iterator[str]:
    """The ingest service in a process of its own; it drains when the block ends, and so sends its spans."""
    command = [sys.executable, "-m", "services.ingest.server", "--port", "0", "--store", store_url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serving" in line)
        try:
            yield f"127.0.0.1:{line.split(' on port ')[1].split(',')[0]}"
        finally:
            process.terminate()
            process.wait(30)


def _environment(collector: Collector, **more: str) -> dict[str, str]:
    return {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, **more}


def _run_step(environment: dict[str, str], endpoint: str) -> None:
    environment = {**environment, "REBUS_ENDPOINT": endpoint, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", STEP], env=environment, check=True, timeout=WAIT_SECONDS)


def test_a_trace_runs_from_the_pipelines_step_to_the_worker(tmp_path: Path, collector: Collector) -> None:
    environment = _environment(collector)
    with _server((tmp_path / "store").as_uri(), environment) as endpoint:
        _run_step({**environment, "TRACEPARENT": TRACEPARENT}, endpoint)
        until(lambda: collector.named("job supervisor"))
    (step,) = collector.named("pipeline step ingest")
    calls = {span.service: span for span in collector.named("rebus.v1.IngestionService/CreateIngestion")}
    client, server = calls["rebus-pipelines"], calls["rebus-ingest"]
    (submit,) = collector.named("job submit")
    (supervisor,) = collector.named("job supervisor")
    (worker,) = collector.named("job worker")
    chain = [step, client, server, submit, supervisor, worker]
    assert [span.service for span in chain] == [
        "rebus-pipelines",
        "rebus-pipelines",
        "rebus-ingest",
        "rebus-ingest",
        "rebus-supervisor",
        "rebus-worker",
    ]
    assert {span.trace_id for span in chain} == {TRACE_ID}
    assert [span.parent_id for span in chain] == [SPAN_ID, *(span.span_id for span in chain[:-1])]


def test_a_step_outside_any_trace_begins_one(tmp_path: Path, collector: Collector) -> None:
    with _server((tmp_path / "store").as_uri(), _environment(collector)) as endpoint:
        _run_step({k: v for k, v in os.environ.items() if k != "TRACEPARENT"}, endpoint)  # it exports nothing itself
        (worker,) = until(lambda: collector.named("job worker"))
    (server,) = collector.named("rebus.v1.IngestionService/CreateIngestion")
    gets = collector.named("rebus.v1.DatasetService/GetDatasetVersion")
    assert gets
    assert {span.trace_id for span in [server, *gets]} == {worker.trace_id}


def test_a_recovered_job_keeps_its_trace(store: Store, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(reader="scenes")
    source.settings.update({"num_scenes": 5, "seed": 1})
    request = CreateIngestionRequest(ingestion=Ingestion(dataset="datasets/scenes", sources=[source]))
    with hosted(store.url, ["ingest"]) as endpoint, monkeypatch.context() as patched:
        patched.setattr("rebus.jobs.executor.LocalExecutor.submit", lambda self, name: None)
        with grpc.insecure_channel(endpoint) as channel:
            stub = dataset_pb2_grpc.IngestionServiceStub(channel)
            job = stub.CreateIngestion(request, metadata=[("traceparent", TRACEPARENT)])
    assert job.job.traceparent == TRACEPARENT
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("TRACEPARENT", "00-" + "1" * 32 + "-" + "1" * 16 + "-01")  # the new service's own, of no concern
    with hosted(store.url, ["ingest"]) as endpoint, Client(endpoint) as client:
        assert client.wait(job.name).job.state == JobStatus.SUCCEEDED
        (supervisor,) = until(lambda: collector.named("job supervisor"))
    (worker,) = collector.named("job worker")
    assert (supervisor.trace_id, supervisor.parent_id) == (TRACE_ID, SPAN_ID)
    assert (worker.trace_id, worker.parent_id) == (TRACE_ID, supervisor.span_id)


def test_a_collector_that_is_away_delays_no_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    source = Source(reader="scenes")
    source.settings.update({"num_scenes": 5, "seed": 1})
    request = CreateIngestionRequest(ingestion=Ingestion(dataset="datasets/scenes", sources=[source]))
    with hosted(store.url, ["ingest"]) as endpoint, Client(endpoint) as client:
        assert client.wait(client.ingestions.CreateIngestion(request).name).job.state == JobStatus.SUCCEEDED
