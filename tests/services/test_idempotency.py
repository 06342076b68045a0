"""A mutation with a request id happens once: after a restart, under concurrent repeats, for every method."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.protobuf.message import Message

from rebus.client import Client
from rebus.errors import FailedPreconditionError, InvalidArgumentError
from rebus.jobs import status
from rebus.jobs.events import EventLog
from rebus.store import Store, documents, manifests
from rebus.v1.common_pb2 import JobStatus, Resources
from rebus.v1.dataset_pb2 import (
    CancelCurationRequest,
    CancelIngestionRequest,
    CreateCurationRequest,
    CreateDatasetRequest,
    CreateIngestionRequest,
    Curation,
    Curator,
    Dataset,
    DatasetVersion,
    DeleteDatasetRequest,
    Ingestion,
    ResumeIngestionRequest,
    Source,
)
from rebus.v1.evaluation_pb2 import CancelEvaluationRequest, Evaluation
from rebus.v1.model_pb2 import CreateModelVersionRequest, Model, ModelVersion, SetModelAliasRequest
from rebus.v1.retrieval_pb2 import CancelIndexRequest, CreateIndexRequest, DeleteIndexRequest, Index
from rebus.v1.training_pb2 import CancelRunRequest, ResumeRunRequest, Run
from services.harness.embedded import hosted
from services.harness.runtime import Runtime

VERSION = "models/m/versions/1"
ROWS = "datasets/d/versions/1"


class Idle:
    """An executor whose jobs wait, so that a test sees what its requests did alone; notes what it is told."""

    def __init__(self) -> None:
        self.submitted: list[str] = []
        self.cancelled: list[str] = []

    host = "idle"

    def plan(self, collection: str, asked: object) -> Resources:
        del collection, asked
        return Resources()

    def admit(self) -> None:
        pass

    def close(self) -> None:
        pass

    def submit(self, name: str) -> None:
        self.submitted.append(name)

    def cancel(self, name: str) -> None:
        self.cancelled.append(name)

    def recover(self, collection: str) -> None:
        pass


@pytest.fixture
def executor() -> Idle:
    return Idle()


@pytest.fixture
def serve(store: Store, executor: Idle, _own_cache: None) -> Callable[[], Any]:
    """Starts a server over the test's store: call it again for a restart."""
    _fill(store)
    return lambda: hosted(store.url, runtime=Runtime(store, executor, Path(store.url.removeprefix("file://"))))


def _fill(store: Store) -> None:
    documents.create(store, Dataset(name="datasets/d"))
    documents.create(store, DatasetVersion(name=ROWS, splits={"train": 1}))
    documents.create(store, Model(name="models/m", aliases={"old": VERSION}))
    documents.create(store, ModelVersion(name=VERSION, architecture="dual-encoder"))
    documents.create(store, ModelVersion(name="models/m/versions/2", architecture="dual-encoder"))
    for message in (Ingestion(), Curation(), Run(), Index(), Evaluation()):
        job: Any = message
        collection = next(key for key, cls in documents.TYPES.items() if cls is type(message))
        for name, state in (("live", JobStatus.RUNNING), ("failed", JobStatus.FAILED)):
            job.name, job.job.state = f"{collection}/{name}", state
            documents.create(store, job)
    checkpoint = "runs/trained/checkpoints/step-1"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    store.put(f"{checkpoint}/model/model.safetensors", len(header).to_bytes(8, "little") + header + bytes(8))
    store.put(f"{checkpoint}/model/config.json", b'{"architecture": "mllm"}')
    manifests.publish(store, checkpoint)
    documents.create(store, Run(name="runs/trained", checkpoint=checkpoint, job=JobStatus(state=JobStatus.SUCCEEDED)))


def _scenes(count: int) -> Ingestion:
    settings = struct_pb2.Struct()
    settings.update({"num_scenes": count})
    return Ingestion(dataset="datasets/scenes", sources=[Source(reader="scenes", settings=settings)])


# Each mutation with another one under the same id.
MUTATIONS: list[tuple[str, str, Message, Message]] = [
    ("datasets", "CreateDataset", CreateDatasetRequest(dataset_id="a"), CreateDatasetRequest(dataset_id="b")),
    ("datasets", "DeleteDataset", DeleteDatasetRequest(name="datasets/d"), DeleteDatasetRequest(name="datasets/e")),
    (
        "ingestions",
        "CreateIngestion",
        CreateIngestionRequest(ingestion=_scenes(1)),
        CreateIngestionRequest(ingestion=_scenes(2)),
    ),
    (
        "ingestions",
        "CreateCuration",
        CreateCurationRequest(curation=Curation(dataset_version=ROWS, curators=[Curator(curator="exact-dedup")])),
        CreateCurationRequest(curation=Curation(dataset_version=ROWS, curators=[Curator(curator="image-size")])),
    ),
    (
        "retrieval",
        "CreateIndex",
        CreateIndexRequest(index=Index(model_version=VERSION, dataset_version=ROWS)),
        CreateIndexRequest(index=Index(model_version=VERSION, dataset_version=ROWS, algorithm="hnsw")),
    ),
    ("retrieval", "DeleteIndex", DeleteIndexRequest(name="indexes/live"), DeleteIndexRequest(name="indexes/failed")),
    ("training", "ResumeRun", ResumeRunRequest(name="runs/failed"), ResumeRunRequest(name="runs/trained")),
    (
        "ingestions",
        "ResumeIngestion",
        ResumeIngestionRequest(name="ingestions/failed"),
        ResumeIngestionRequest(name="ingestions/live"),
    ),
    (
        "models",
        "CreateModelVersion",
        CreateModelVersionRequest(parent="models/new", run="runs/trained"),
        CreateModelVersionRequest(parent="models/other", run="runs/trained"),
    ),
    (
        "models",
        "SetModelAlias",
        SetModelAliasRequest(name="models/m", alias="best", model_version=VERSION),
        SetModelAliasRequest(name="models/m", alias="best", model_version="models/m/versions/2"),
    ),
    *[
        (stub, f"Cancel{kind}", cls(name=f"{collection}/live"), cls(name=f"{collection}/failed"))
        for stub, kind, collection, cls in (
            ("ingestions", "Ingestion", "ingestions", CancelIngestionRequest),
            ("ingestions", "Curation", "curations", CancelCurationRequest),
            ("training", "Run", "runs", CancelRunRequest),
            ("retrieval", "Index", "indexes", CancelIndexRequest),
            ("evaluation", "Evaluation", "evaluations", CancelEvaluationRequest),
        )
    ],
]


def _send(client: Client, stub: str, method: str, request: Message, request_id: str = "r") -> Any:
    copy: Any = type(request)()
    copy.CopyFrom(request)
    copy.request_id = request_id
    return getattr(getattr(client, stub), method)(copy)


@pytest.mark.parametrize(("stub", "method", "request_", "other"), MUTATIONS, ids=[case[1] for case in MUTATIONS])
def test_a_repeat_returns_the_first_result_also_after_a_restart(
    serve: Callable[[], Any], executor: Idle, stub: str, method: str, request_: Message, other: Message
) -> None:
    with serve() as endpoint, Client(endpoint) as client:
        first = _send(client, stub, method, request_)
        assert _send(client, stub, method, request_) == first
        told = (set(executor.submitted), set(executor.cancelled))
    with serve() as endpoint, Client(endpoint) as client:
        assert _send(client, stub, method, request_) == first
        with pytest.raises(InvalidArgumentError, match="request_id: was used for another request") as caught:
            _send(client, stub, method, other)
        assert [violation.field for violation in caught.value.violations] == ["request_id"]
    # Sets: a job that still waits is submitted again, in case the server died before it was; executors start it once.
    assert (set(executor.submitted), set(executor.cancelled)) == told


@pytest.mark.parametrize(("stub", "method", "request_", "other"), MUTATIONS, ids=[case[1] for case in MUTATIONS])
def test_concurrent_repeats_return_one_result(
    serve: Callable[[], Any], executor: Idle, stub: str, method: str, request_: Message, other: Message
) -> None:
    with serve() as endpoint, Client(endpoint) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: _send(client, stub, method, request_), range(8)))
    assert all(result == results[0] for result in results)
    assert len(set(executor.submitted)) == (1 if method in (*_RESUMES, *_CREATES) else 0)
    assert method not in _RESUMES or len(executor.submitted) == 1


_RESUMES = ("ResumeRun", "ResumeIngestion")
_CREATES = ("CreateIngestion", "CreateCuration", "CreateIndex")


def test_an_alias_moved_since_stays_where_it_is(serve: Callable[[], Any]) -> None:
    move = SetModelAliasRequest(name="models/m", alias="best", model_version=VERSION)
    later = SetModelAliasRequest(name="models/m", alias="best", model_version="models/m/versions/2")
    with serve() as endpoint, Client(endpoint) as client:
        _send(client, "models", "SetModelAlias", move)
        _send(client, "models", "SetModelAlias", later, "s")
        assert _send(client, "models", "SetModelAlias", move).aliases["best"] == "models/m/versions/2"


def test_a_run_that_failed_again_is_resumed_by_a_new_request_only(
    serve: Callable[[], Any], store: Store, executor: Idle
) -> None:
    resume = ResumeRunRequest(name="runs/failed")
    with serve() as endpoint, Client(endpoint) as client:
        _send(client, "training", "ResumeRun", resume)
        status.transition(store, "runs/failed", JobStatus.FAILED)
        assert _send(client, "training", "ResumeRun", resume).job.state == JobStatus.FAILED
        assert _send(client, "training", "ResumeRun", resume, "s").job.state == JobStatus.QUEUED
        with pytest.raises(FailedPreconditionError):
            _send(client, "training", "ResumeRun", resume, "t")
    assert executor.submitted == ["runs/failed"] * 2
    states = [event.values["state"] for event in EventLog(store, "runs/failed").read()]
    assert states == ["QUEUED", "FAILED", "QUEUED"]


def test_a_cancelled_run_that_was_resumed_is_not_cancelled_by_a_repeat(
    serve: Callable[[], Any], store: Store, executor: Idle
) -> None:
    cancel = CancelRunRequest(name="runs/live")
    with serve() as endpoint, Client(endpoint) as client:
        _send(client, "training", "CancelRun", cancel)
        status.transition(store, "runs/live", JobStatus.CANCELLED)
        _send(client, "training", "ResumeRun", ResumeRunRequest(name="runs/live"))
        assert not _send(client, "training", "CancelRun", cancel).job.cancel_requested
    assert executor.cancelled == ["runs/live"]


def test_concurrent_registrations_of_a_run_make_one_version(serve: Callable[[], Any], store: Store) -> None:
    request = CreateModelVersionRequest(parent="models/new", run="runs/trained")
    with serve() as endpoint, Client(endpoint) as client, ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: client.models.CreateModelVersion(request).name, range(8)))
    assert set(made) == {"models/new/versions/1"}
    assert [version.name for version in documents.list_all(store, ModelVersion, parent="models/new")] == made[:1]


def test_only_what_a_caller_may_set_is_stored(serve: Callable[[], Any]) -> None:
    wanted = _scenes(1)
    wanted.dataset_version, wanted.num_samples = "datasets/other/versions/1", 9
    with serve() as endpoint, Client(endpoint) as client:
        made = client.ingestions.CreateIngestion(CreateIngestionRequest(ingestion=wanted))
    assert (made.dataset_version, made.num_samples) == ("", 0)
