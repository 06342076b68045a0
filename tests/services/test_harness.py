"""What every service has in common, seen from the wire."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from rebus.client import Client
from rebus.errors import InvalidArgumentError, NotFoundError, RebusError, UnavailableError
from rebus.store import Store, documents
from rebus.v1 import (
    common_pb2,
    dataset_pb2,
    evaluation_pb2,
    generation_pb2,
    media_pb2,
    model_pb2,
    retrieval_pb2,
    training_pb2,
    training_pb2_grpc,
)

SERVICES = {
    "rebus.v1.DatasetService",
    "rebus.v1.IngestionService",
    "rebus.v1.MediaService",
    "rebus.v1.TrainingService",
    "rebus.v1.ModelService",
    "rebus.v1.RetrievalService",
    "rebus.v1.GenerationService",
    "rebus.v1.EvaluationService",
}


def test_reflection_lists_every_service_and_serves_its_descriptor(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    listing = next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
    names = {service.name for service in listing.list_services_response.service}
    assert names == SERVICES | {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    for name in SERVICES:
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
        answer = next(stub.ServerReflectionInfo(iter([request])))
        assert answer.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("name", ["", *sorted(SERVICES)])
def test_health_answers_per_service(channel: grpc.Channel, name: str) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_every_service_of_the_contract_is_hosted() -> None:
    pool = descriptor_pool.Default()
    files = (dataset_pb2, training_pb2, model_pb2, retrieval_pb2, generation_pb2, evaluation_pb2, common_pb2, media_pb2)
    declared = {
        service.full_name
        for module in files
        for service in pool.FindFileByName(module.DESCRIPTOR.name).services_by_name.values()
    }
    assert declared == SERVICES


INVALID = [
    ("training", "CreateRun", training_pb2.CreateRunRequest(), "run"),
    (
        "training",
        "CreateRun",
        training_pb2.CreateRunRequest(run=training_pb2.Run(recipe="a: 1", datasets={"x": "nope"})),
        "run.datasets[x]",
    ),
    ("training", "GetRun", training_pb2.GetRunRequest(name="../x"), "name"),
    ("training", "WatchRun", training_pb2.WatchRunRequest(name="runs/x", after_event=-1), "after_event"),
    ("datasets", "CreateDataset", dataset_pb2.CreateDatasetRequest(dataset_id="No Good"), "dataset_id"),
    ("ingestions", "CreateIngestion", dataset_pb2.CreateIngestionRequest(), "ingestion"),
    (
        "ingestions",
        "CreateIngestion",
        dataset_pb2.CreateIngestionRequest(
            ingestion=dataset_pb2.Ingestion(dataset="datasets/x", sources=[dataset_pb2.Source(reader="")])
        ),
        "ingestion.sources[0].reader",
    ),
    ("models", "GetModelVersion", model_pb2.GetModelVersionRequest(name="models/x"), "name"),
    ("retrieval", "Embed", retrieval_pb2.EmbedRequest(model_version="models/x/versions/1"), "inputs"),
    (
        "retrieval",
        "Search",
        retrieval_pb2.SearchRequest(index="indexes/x", query=retrieval_pb2.Query(text="")),
        "query.text",
    ),
    (
        "generation",
        "Generate",
        generation_pb2.GenerateRequest(
            model_version="models/x/versions/1",
            segments=[common_pb2.Segment(text="a")],
            sampling=generation_pb2.SamplingParams(temperature=-1),
        ),
        "sampling.temperature",
    ),
    (
        "evaluation",
        "CreateEvaluation",
        evaluation_pb2.CreateEvaluationRequest(evaluation=evaluation_pb2.Evaluation(model_version="x")),
        "evaluation.model_version",
    ),
]


@pytest.mark.parametrize(("stub", "method", "request_", "field"), INVALID, ids=[f"{i[1]}-{i[3]}" for i in INVALID])
def test_an_invalid_request_names_its_field(
    client: Client, stub: str, method: str, request_: object, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        _consume(getattr(getattr(client, stub), method)(request_))
    assert field in {violation.field for violation in caught.value.violations}


MISSING = [
    "datasets/x",
    "datasets/x/versions/1",
    "models/x",
    "models/x/versions/1",
    "models/x/versions/champion",
    "ingestions/x",
    "curations/x",
    "runs/x",
    "indexes/x",
    "evaluations/x",
]


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_resource_is_not_found(client: Client, name: str) -> None:
    with pytest.raises(NotFoundError, match=f"no {'models/x' if 'champion' in name else name}"):
        client.get(name)


@pytest.mark.parametrize("name", ["ingestions/x", "curations/x", "runs/x", "indexes/x", "evaluations/x"])
def test_watching_and_cancelling_a_missing_job_is_not_found(client: Client, name: str) -> None:
    with pytest.raises(NotFoundError, match=f"no {name}"):
        list(client.watch(name))
    with pytest.raises(NotFoundError, match=f"no {name}"):
        client.cancel(name)


def test_the_status_carries_details_for_any_client(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        training_pb2_grpc.TrainingServiceStub(channel).GetRun(training_pb2.GetRunRequest(name="?"))
    status = rpc_status.from_call(caught.value)  # pyright: ignore[reportArgumentType]
    assert status is not None
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "rebus.dev")
    assert request.field_violations[0].field == "name"


METHODS = ("/rebus.v1.TrainingService/GetRun", "/rebus.v1.TrainingService/WatchRun")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [b"\x0a", b"\x00", b"\x0a\x04\xff\xfe\xc3\x28"], ids=["cut", "no tag", "no UTF-8"])
def test_bytes_that_are_no_message_are_an_invalid_argument(channel: grpc.Channel, method: str, data: bytes) -> None:
    call = channel.unary_stream(method, None, bytes) if "Watch" in method else channel.unary_unary(method, None, bytes)
    with pytest.raises(grpc.RpcError) as caught:
        _consume(call(data))
    assert _violated(caught.value) == ["request"]


def test_an_error_too_long_for_trailers_keeps_its_code_and_its_first_fields(channel: grpc.Channel) -> None:
    """Uncut, gRPC drops the status, and the caller sees neither the code nor a field."""
    datasets = {f"{'é' * 2000}{number}": "nope" for number in range(60)}
    run = training_pb2.Run(recipe="💥" * 9000, datasets=datasets)
    with pytest.raises(grpc.RpcError) as caught:
        training_pb2_grpc.TrainingServiceStub(channel).CreateRun(training_pb2.CreateRunRequest(run=run))
    assert _violated(caught.value)[0].startswith("run.datasets[é")
    assert caught.value.details().endswith("...")  # pyright: ignore[reportAttributeAccessIssue]


def test_a_page_token_of_digits_that_are_no_number_is_refused(client: Client, store: Store) -> None:
    documents.create(store, dataset_pb2.Ingestion(name="ingestions/x"))
    with pytest.raises(InvalidArgumentError, match="page_token"):
        client.ingestions.ListQuarantine(dataset_pb2.ListQuarantineRequest(parent="ingestions/x", page_token="²"))


def test_an_unexpected_error_shows_only_an_id(client: Client, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    documents.create(store, training_pb2.Run(name="runs/x"))
    original = documents.TYPES["runs"]
    documents.TYPES["runs"] = None  # pyright: ignore[reportArgumentType]
    try:
        with pytest.raises(RebusError, match=r"^internal error, trace id [0-9a-f]{32}$") as caught:
            client.get("runs/x")
    finally:
        documents.TYPES["runs"] = original
    assert caught.value.metadata["trace_id"] in caplog.text
    assert "Traceback" in caplog.text


def test_no_server_is_one_clear_line() -> None:
    with pytest.raises(UnavailableError, match="no Rebus server answers at 127.0.0.1:1"):
        Client("127.0.0.1:1").get("runs/x")


@pytest.mark.parametrize("name", ["runs", "runs/x/y/z", "nothing/x", "datasets/x/versions"])
def test_the_client_refuses_a_name_of_no_resource(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not the name of a resource"):
        Client("127.0.0.1:1").get(name)


@pytest.mark.slow
def test_a_server_process_drains_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.training.server", "--port", "0", "--store", tmp_path.as_uri()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    line = next(line for line in process.stderr if "serving" in line)
    port = int(line.split(" on port ")[1].split(",")[0])
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="rebus.v1.TrainingService"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        started = time.monotonic()
        assert process.wait(15) == 0
        assert time.monotonic() - started < 12  # the drain is bounded
    process.stderr.close()


def _violated(error: grpc.RpcError) -> list[str]:
    """The fields that an INVALID_ARGUMENT names."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore[reportAttributeAccessIssue]
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    assert status is not None
    request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(request) for detail in status.details)
    return [violation.field for violation in request.field_violations]


def _consume(response: object) -> None:
    if hasattr(response, "__next__"):
        list(response)  # pyright: ignore[reportArgumentType]
