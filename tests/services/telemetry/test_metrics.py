"""What a scraper and a probe see of a real server, and what stands in its log."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from rebus.client import Client, Credentials
from rebus.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, RebusError, UnauthenticatedError
from rebus.store import Store, documents
from rebus.v1 import training_pb2, training_pb2_grpc
from rebus.v1.common_pb2 import JobStatus
from services.harness.auth import Security, tokens
from services.harness.embedded import hosted
from services.harness.limits import Limits, PoolLimits
from services.harness.runtime import Runtime
from services.harness.server import Host, load
from services.harness.telemetry import Telemetry, TelemetrySettings
from services.harness.telemetry.calls import Calls
from services.harness.telemetry.logs import JsonFormatter
from services.harness.telemetry.metrics import DURATION_BUCKETS, Metrics
from tests.waiting import until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-00"
GET_RUN = {"grpc_service": "rebus.v1.TrainingService", "grpc_method": "GetRun"}
WATCH_RUN = {"grpc_service": "rebus.v1.TrainingService", "grpc_method": "WatchRun"}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(TelemetrySettings(metrics_port=0, jobs_refresh_seconds=1))


@pytest.fixture
def address(store: Store, telemetry: Telemetry) -> Iterator[str]:
    with hosted(store.url, ["training"], telemetry=telemetry) as found:
        yield found


def fetch(telemetry: Telemetry, path: str, token: str = "") -> tuple[int, str]:
    url = f"http://127.0.0.1:{telemetry.metrics_port}{path}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def value(telemetry: Telemetry, name: str, token: str = "", **labels: str) -> float:
    """The sum of the samples of that name with at least those labels. A caller has its answer before it is counted."""
    families = text_string_to_metric_families(fetch(telemetry, "/metrics", token)[1])
    found = [s for family in families for s in family.samples if s.name == name and labels.items() <= s.labels.items()]
    return sum(sample.value for sample in found)


def get_run(address: str, name: str, traceparent: str) -> Any:
    """The error that a call within that trace ends with."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = training_pb2_grpc.TrainingServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRun(training_pb2.GetRunRequest(name=name), metadata=[("traceparent", traceparent)])
        return caught.value


def test_durations_fall_into_the_buckets_of_a_histogram() -> None:
    """Against the library's own histogram, also for times that lie on a bucket's bound."""
    ours, theirs = Metrics(), CollectorRegistry()
    labels = ("grpc_type", "grpc_service", "grpc_method")
    name = "grpc_server_handling_seconds"
    histogram = Histogram(name, "", labels, buckets=DURATION_BUCKETS, registry=theirs)
    method, expected = ours.method("s", "m", "unary"), histogram.labels("unary", "s", "m")
    for seconds in (0.0, 0.0004, *DURATION_BUCKETS, 0.3, 61.0, 1e4):
        method.ended(grpc.StatusCode.OK, seconds)
        expected.observe(seconds)
    values = dict(zip(labels, ("unary", "s", "m"), strict=True))
    for bound in [*map(floatToGoString, DURATION_BUCKETS), "+Inf"]:
        found, wanted = (r.get_sample_value(f"{name}_bucket", {**values, "le": bound}) for r in (ours.registry, theirs))
        assert found == wanted, bound
    for suffix in ("count", "sum"):
        found, wanted = (r.get_sample_value(f"{name}_{suffix}", values) for r in (ours.registry, theirs))
        assert found == pytest.approx(wanted)


def test_calls_are_counted_by_method_and_code(address: str, telemetry: Telemetry, store: Store) -> None:
    documents.create(store, training_pb2.Run(name="runs/x"))
    with Client(address) as client:
        client.get("runs/x")
        client.get("runs/x")
        with pytest.raises(NotFoundError):
            client.get("runs/y")
        with pytest.raises(InvalidArgumentError):
            client.training.GetRun(training_pb2.GetRunRequest(name="?"))
    until(lambda: value(telemetry, "grpc_server_handling_seconds_count", **GET_RUN) == 4)
    for code, count in {"OK": 2, "NOT_FOUND": 1, "INVALID_ARGUMENT": 1}.items():
        assert value(telemetry, "grpc_server_handled_total", **GET_RUN, grpc_code=code, grpc_type="unary") == count
    assert value(telemetry, "grpc_server_in_flight", **GET_RUN) == 0
    assert value(telemetry, "rebus_store_operation_seconds_count", outcome="NOT_FOUND") >= 1


def test_refused_calls_are_counted(store: Store, telemetry: Telemetry, tmp_path: Path) -> None:
    token, entry = tokens.create("reader", "viewer")
    tokens.append(tmp_path / "tokens.yaml", entry)
    security = Security(tokens=tmp_path / "tokens.yaml")
    with (
        hosted(store.url, ["training"], security=security, telemetry=telemetry) as address,
        Client(address, credentials=Credentials(token="unknown")) as stranger,
        Client(address, credentials=Credentials(token=token)) as reader,
    ):
        with pytest.raises(UnauthenticatedError):
            stranger.get("runs/x")
        with pytest.raises(PermissionDeniedError):
            reader.training.CancelRun(training_pb2.CancelRunRequest(name="runs/x"))
        handled = "grpc_server_handled_total"
        until(lambda: value(telemetry, handled, token, **GET_RUN, grpc_code="UNAUTHENTICATED") == 1)
        until(lambda: value(telemetry, handled, token, grpc_method="CancelRun", grpc_code="PERMISSION_DENIED") == 1)
        assert value(telemetry, "grpc_server_in_flight", token) == 0


def test_a_stream_is_in_flight_until_its_caller_goes(address: str, telemetry: Telemetry, store: Store) -> None:
    documents.create(store, training_pb2.Run(name="runs/x", job=JobStatus(state=JobStatus.RUNNING)))
    with grpc.insecure_channel(address) as channel:
        stub: Any = training_pb2_grpc.TrainingServiceStub(channel)
        request = training_pb2.WatchRunRequest(name="runs/x")
        stream = stub.WatchRun(request)
        until(lambda: value(telemetry, "grpc_server_in_flight", **WATCH_RUN) == 1)
        stream.cancel()
        until(lambda: value(telemetry, "grpc_server_in_flight", **WATCH_RUN) == 0)
        handled = "grpc_server_handled_total"
        assert value(telemetry, handled, **WATCH_RUN, grpc_code="CANCELLED", grpc_type="server_stream") == 1
        with pytest.raises(grpc.RpcError):
            list(stub.WatchRun(request, timeout=0.5))
        until(lambda: value(telemetry, "grpc_server_handling_seconds_count", **WATCH_RUN) == 2)
        assert value(telemetry, "grpc_server_in_flight", **WATCH_RUN) == 0


def test_made_up_methods_make_no_series(address: str, telemetry: Telemetry) -> None:
    def series() -> set[tuple[str, ...]]:
        families = text_string_to_metric_families(fetch(telemetry, "/metrics")[1])
        samples = [s for family in families if family.name.startswith("grpc_") for s in family.samples]
        return {(sample.name, *sample.labels.values()) for sample in samples}

    with grpc.insecure_channel(address) as channel:
        for number in range(20):
            call = channel.unary_unary(f"/rebus.v1.TrainingService/Made{number}")
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=10)
        first = series()
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/other.Service/Method")(b"", timeout=10)
    assert series() == first
    assert value(telemetry, "grpc_server_handled_total", grpc_code="UNIMPLEMENTED", grpc_method="unknown") == 21


def test_jobs_are_counted_by_kind_and_state(address: str, telemetry: Telemetry, store: Store) -> None:
    for number, state in enumerate((JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.FAILED)):
        documents.create(store, training_pb2.Run(name=f"runs/{number}", job=JobStatus(state=state)))
    until(lambda: value(telemetry, "rebus_jobs", kind="runs", state="RUNNING") == 2)
    assert value(telemetry, "rebus_jobs", kind="runs", state="FAILED") == 1

    def resumed(run: training_pb2.Run) -> None:
        run.job.state = JobStatus.QUEUED

    documents.update(store, training_pb2.Run, "runs/2", resumed)
    until(lambda: value(telemetry, "rebus_jobs", kind="runs", state="QUEUED") == 1)
    assert value(telemetry, "rebus_jobs", kind="runs", state="FAILED") == 0


def test_probes_follow_the_server(store: Store, telemetry: Telemetry) -> None:
    async def scenario() -> None:
        host = Host(load(["training"]), Runtime.open(store.url), address="127.0.0.1:0", telemetry=telemetry)
        await host.start()
        assert await asyncio.to_thread(fetch, telemetry, "/readyz") == (200, "serving\n")
        assert (await asyncio.to_thread(fetch, telemetry, "/healthz"))[0] == 200
        assert (await asyncio.to_thread(fetch, telemetry, "/secret"))[0] == 404
        host._serving = False  # what draining does first
        assert await asyncio.to_thread(fetch, telemetry, "/readyz") == (503, "not serving\n")
        assert (await asyncio.to_thread(fetch, telemetry, "/healthz"))[0] == 200
        await host.stop(0)
        with pytest.raises(urllib.error.URLError):
            await asyncio.to_thread(fetch, telemetry, "/healthz")

    asyncio.run(scenario())


def test_calls_that_wait_for_admission_are_counted(
    store: Store, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents.create(store, training_pb2.Run(name="runs/x"))
    go_on, get = threading.Event(), documents.get
    one = PoolLimits(concurrent=1, concurrent_per_principal=1, queued=9, queued_per_principal=9, wait_seconds=60)
    with (
        hosted(store.url, ["training"], telemetry=telemetry, limits=Limits(calls=one)) as address,
        Client(address) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        monkeypatch.setattr(documents, "get", lambda *args: go_on.wait(60) and get(*args))
        answers = [pool.submit(client.get, "runs/x") for _ in range(3)]
        until(lambda: value(telemetry, "rebus_admission_queue_depth") == 2)
        go_on.set()
        assert [answer.result().name for answer in answers] == ["runs/x"] * 3
        assert value(telemetry, "rebus_admission_queue_depth") == 0


def test_an_unexpected_error_is_logged_under_its_callers_trace(
    address: str, telemetry: Telemetry, store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    documents.create(store, training_pb2.Run(name="runs/x"))
    monkeypatch.setitem(documents.TYPES, "runs", None)
    error = get_run(address, "runs/x", TRACEPARENT)
    assert error.details() == f"internal error, trace id {TRACE_ID}"
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    (line,) = [line for line in lines if line["level"] == "ERROR" and line["logger"] == "rebus.rpc"]
    assert (line["trace_id"], line["method"]) == (TRACE_ID, "/rebus.v1.TrainingService/GetRun")
    assert line["span_id"]
    assert line["principal"] == "anonymous"
    assert line["exception"].startswith("Traceback")
    until(lambda: value(telemetry, "grpc_server_handled_total", **GET_RUN, grpc_code="INTERNAL") == 1)


def test_a_call_whose_event_loop_is_gone_is_counted() -> None:
    """As a coroutine that is thrown away ends."""
    metrics = Metrics()
    calls = Calls(metrics, ["rebus.v1.TrainingService"])

    def call() -> None:
        calls.begin("/rebus.v1.TrainingService/GetRun", ())
        with pytest.raises(GeneratorExit), calls.current(Mock(time_remaining=lambda: 1.0)):
            raise GeneratorExit

    contextvars.copy_context().run(call)
    labels = {"grpc_type": "unary", **GET_RUN}
    assert metrics.registry.get_sample_value("grpc_server_in_flight", labels) == 0
    assert metrics.registry.get_sample_value("grpc_server_handled_total", {**labels, "grpc_code": "CANCELLED"}) == 1


def test_a_response_leaves_before_its_accounts_are_kept() -> None:
    """The caller does not wait for them."""
    metrics = Metrics()
    calls = Calls(metrics, ["rebus.v1.TrainingService"])
    labels = {"grpc_type": "unary", **GET_RUN}
    kept = []

    def in_flight() -> float | None:
        return metrics.registry.get_sample_value("grpc_server_in_flight", labels)

    async def answered() -> None:
        calls.begin("/rebus.v1.TrainingService/GetRun", ())
        with calls.current(Mock()) as call:
            call.at_end = lambda: kept.append("place")
        assert (in_flight(), kept) == (1, [])
        await asyncio.sleep(0)
        assert (in_flight(), kept) == (0, ["place"])

    asyncio.run(answered())
    assert metrics.registry.get_sample_value("grpc_server_handled_total", {**labels, "grpc_code": "OK"}) == 1


def test_job_states_are_counted_again_after_an_unexpected_error(
    address: str, telemetry: Telemetry, store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents.create(store, training_pb2.Run(name="runs/x", job=JobStatus(state=JobStatus.FAILED)))
    with monkeypatch.context() as patch:
        patch.setitem(documents.TYPES, "runs", None)
        until(lambda: "job states are out of date" in caplog.text)
    until(lambda: value(telemetry, "rebus_jobs", kind="runs", state="FAILED") == 1)


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 4_000])
def test_a_bad_trace_context_harms_no_call(address: str, header: str) -> None:
    error = get_run(address, "runs/y", header)
    assert error.code() is grpc.StatusCode.NOT_FOUND


def test_a_json_line_holds_one_record() -> None:
    record = logging.LogRecord("rebus.x", logging.WARNING, __file__, 1, "two\nlines %s", ("é",), None)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line.pop("time").endswith("Z")
    assert line == {"level": "WARNING", "logger": "rebus.x", "message": "two\nlines é"}


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(RebusError, match="metrics_port: expected 0 to 65535"):
        TelemetrySettings(metrics_port=port)
