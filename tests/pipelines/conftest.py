"""The services as the pipelines see them: real gRPC over the real contracts, results made up and kept in memory."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from rebus.client import ENDPOINT_ENV
from rebus.errors import AbortedError, NotFoundError, RebusError, invalid
from rebus.status import to_status
from rebus.v1 import dataset_pb2 as data
from rebus.v1 import (
    dataset_pb2_grpc,
    evaluation_pb2_grpc,
    model_pb2_grpc,
    retrieval_pb2_grpc,
    training_pb2_grpc,
)
from rebus.v1 import evaluation_pb2 as evaluations
from rebus.v1 import model_pb2 as models
from rebus.v1 import retrieval_pb2 as retrieval
from rebus.v1 import training_pb2 as training
from rebus.v1.common_pb2 import JobEvent, JobStatus


class FakeServices:
    """State of all services. A new job is QUEUED in its creation's answer and ends at once; ``failures["runs"] = 1``
    makes the next run fail."""

    def __init__(self) -> None:
        self.resources: dict[str, Any] = {}
        self.created: list[str] = []
        self.failures: dict[str, int] = defaultdict(int)
        self.scores: dict[str, float] = {}
        self.before_alias: list[Any] = []
        self._requests: dict[tuple[str, str], str] = {}
        self._ids = itertools.count(1)

    def start(self, collection: str, resource: Any, request_id: str) -> Any:
        key = (collection, request_id)
        if key in self._requests:
            return self.resources[self._requests[key]]
        resource.name = f"{collection}/{next(self._ids)}"
        self._requests[key] = resource.name
        self.resources[resource.name] = resource
        self.created.append(resource.name)
        self.finish(collection, resource)
        return resource

    def finish(self, collection: str, resource: Any) -> Any:
        if self.failures[collection]:
            self.failures[collection] -= 1
            resource.job.state = JobStatus.FAILED
            resource.job.error.CopyFrom(to_status(invalid("sources[0].uri", "no such\nfile")))
        else:
            resource.job.state = JobStatus.SUCCEEDED
        return resource

    def publish_version(self, dataset: str, producer: str) -> str:
        name = f"{dataset}/versions/{next(self._ids)}"
        self.resources[name] = data.DatasetVersion(name=name, digest=f"digest of {name}", producer=producer)
        return name

    def created_in(self, collection: str) -> list[str]:
        return [name for name in self.created if name.startswith(f"{collection}/")]


def _call(method: Any) -> Any:
    """A gRPC method that ends with the status of the domain error it raises."""

    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        before = len(self.fake.created)
        try:
            resource = method(self, request)
            return resource if len(self.fake.created) == before else queued(resource)
        except RebusError as error:
            context.abort_with_status(rpc_status.to_status(to_status(error)))

    return call


def queued(resource: Any) -> Any:
    """How a new job looks in its creation's answer."""
    answer = type(resource)()
    answer.CopyFrom(resource)
    answer.job.Clear()
    answer.job.state = JobStatus.QUEUED
    return answer


class Servicer:
    """Get and Watch for whatever the method's name ends with."""

    def __init__(self, fake: FakeServices) -> None:
        self.fake = fake

    @_call
    def get(self, request: Any) -> Any:
        if request.name not in self.fake.resources:
            raise NotFoundError(f"{request.name} does not exist")
        return self.fake.resources[request.name]

    def watch(self, request: Any, context: grpc.ServicerContext) -> Iterator[JobEvent]:
        event = JobEvent(sequence=1, kind="progress")
        event.values.update({"progress": 0.5, "message": "half way"})
        yield event


class Datasets(Servicer, dataset_pb2_grpc.DatasetServiceServicer):
    GetDatasetVersion = Servicer.get


class Ingestions(Servicer, dataset_pb2_grpc.IngestionServiceServicer):
    GetIngestion = GetCuration = Servicer.get
    WatchIngestion = WatchCuration = Servicer.watch

    @_call
    def CreateIngestion(self, request: data.CreateIngestionRequest) -> data.Ingestion:
        ingestion = self.fake.start("ingestions", request.ingestion, request.request_id)
        if ingestion.job.state == JobStatus.SUCCEEDED and not ingestion.dataset_version:
            ingestion.dataset_version = self.fake.publish_version(ingestion.dataset, ingestion.name)
        return ingestion

    @_call
    def CreateCuration(self, request: data.CreateCurationRequest) -> data.Curation:
        curation = self.fake.start("curations", request.curation, request.request_id)
        if curation.job.state == JobStatus.SUCCEEDED and not curation.result_version:
            dataset = curation.dataset_version.partition("/versions/")[0]
            curation.result_version = self.fake.publish_version(dataset, curation.name)
        return curation


class Training(Servicer, training_pb2_grpc.TrainingServiceServicer):
    GetRun, WatchRun = Servicer.get, Servicer.watch

    @_call
    def CreateRun(self, request: training.CreateRunRequest) -> training.Run:
        request.run.metrics["loss"] = 0.25
        return self.fake.start("runs", request.run, request.request_id)

    @_call
    def ResumeRun(self, request: training.ResumeRunRequest) -> training.Run:
        return self.fake.finish("runs", self.fake.resources[request.name])


class Models(Servicer, model_pb2_grpc.ModelServiceServicer):
    GetModel = GetModelVersion = Servicer.get

    @_call
    def CreateModelVersion(self, request: models.CreateModelVersionRequest) -> models.ModelVersion:
        name = f"{request.parent}/versions/{request.run.rpartition('/')[2]}"
        version = models.ModelVersion(name=name, run=request.run, digest=f"digest of {name}")
        self.fake.resources.setdefault(request.parent, models.Model(name=request.parent))
        return self.fake.resources.setdefault(name, version)

    @_call
    def SetModelAlias(self, request: models.SetModelAliasRequest) -> models.Model:
        for action in self.fake.before_alias:
            action()
        aliases = self.fake.resources[request.name].aliases
        if request.HasField("expected_version") and aliases.get(request.alias, "") != request.expected_version:
            raise AbortedError(f"{request.alias} points at {aliases[request.alias]}")
        aliases[request.alias] = request.model_version
        return self.fake.resources[request.name]


class Retrieval(Servicer, retrieval_pb2_grpc.RetrievalServiceServicer):
    GetIndex, WatchIndex = Servicer.get, Servicer.watch

    @_call
    def CreateIndex(self, request: retrieval.CreateIndexRequest) -> retrieval.Index:
        return self.fake.start("indexes", request.index, request.request_id)


class Evaluations(Servicer, evaluation_pb2_grpc.EvaluationServiceServicer):
    GetEvaluation, WatchEvaluation = Servicer.get, Servicer.watch

    @_call
    def CreateEvaluation(self, request: evaluations.CreateEvaluationRequest) -> evaluations.Evaluation:
        evaluation = self.fake.start("evaluations", request.evaluation, request.request_id)
        if not evaluation.scores:
            value = self.fake.scores.get(evaluation.model_version, 0.5)
            for spec in evaluation.benchmarks:
                evaluation.scores.add(benchmark=spec.benchmark, group="mean", metric="exact_match", value=value)
                evaluation.scores.add(
                    benchmark=spec.benchmark, group="text_to_image", metric="recall_at_1", value=value, chance=0.1
                )
        return evaluation

    @_call
    def ListPredictions(self, request: evaluations.ListPredictionsRequest) -> evaluations.ListPredictionsResponse:
        """Two pages of one prediction each."""
        answer = "red" if request.page_token else "blue"
        item = evaluations.Prediction(benchmark="scene-questions", group="color", prediction=answer, references=["red"])
        return evaluations.ListPredictionsResponse(
            predictions=[item], next_page_token="" if request.page_token else "second"
        )


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServices]:
    """The fake services, listening; ``REBUS_ENDPOINT`` names them."""
    fake = FakeServices()
    server = grpc.server(ThreadPoolExecutor(4))
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(Datasets(fake), server)
    dataset_pb2_grpc.add_IngestionServiceServicer_to_server(Ingestions(fake), server)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(Training(fake), server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(Models(fake), server)
    retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(Retrieval(fake), server)
    evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(Evaluations(fake), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv(ENDPOINT_ENV, f"127.0.0.1:{port}")
    yield fake
    server.stop(None).wait()
