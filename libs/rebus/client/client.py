"""One client for all services behind one endpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from rebus.client.credentials import Bearer, Credentials
from rebus.client.errors import translated
from rebus.client.tracing import traced
from rebus.errors import invalid
from rebus.status import from_status
from rebus.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    evaluation_pb2,
    evaluation_pb2_grpc,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    retrieval_pb2,
    retrieval_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from rebus.v1.common_pb2 import JobEvent, JobStatus

ENDPOINT_ENV = "REBUS_ENDPOINT"
MAX_MESSAGE_BYTES = 64 << 20
DEFAULT_TIMEOUT_SECONDS = 60.0
TERMINAL = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)
_KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]


class _Stub:
    """A generated stub whose calls raise domain errors and carry a default deadline."""

    def __init__(self, stub: Any, endpoint: str, bearer: Bearer) -> None:
        self._stub = stub
        self._endpoint = endpoint
        self._bearer = bearer

    def __getattr__(self, method: str) -> Callable[..., Any]:
        call = getattr(self._stub, method)
        if isinstance(call, grpc.UnaryStreamMultiCallable):
            return lambda request, timeout=None: self._stream(call, request, timeout)
        return lambda request, timeout=DEFAULT_TIMEOUT_SECONDS: self._unary(call, request, timeout)

    def _unary(self, call: Any, request: Message, timeout: float | None) -> Any:
        with translated(self._endpoint):
            return call(request, timeout=timeout, metadata=self._bearer.metadata())

    def _stream(self, call: Any, request: Message, timeout: float | None) -> Iterator[Any]:
        with translated(self._endpoint):
            responses = call(request, timeout=timeout, metadata=self._bearer.metadata())
            try:
                yield from responses
            finally:
                responses.cancel()


class Client:
    """Stubs for every service, and the calls that every user needs: ``get``, ``watch``, ``wait``.

    Usable as a context manager. Errors are those of ``rebus.errors``. Without ``credentials``, they are those of the
    ``REBUS_*`` variables.
    """

    def __init__(self, endpoint: str | None = None, *, credentials: Credentials | None = None) -> None:
        self.endpoint = endpoint or os.environ.get(ENDPOINT_ENV, "")
        if not self.endpoint:
            raise invalid("endpoint", f"pass host:port or set {ENDPOINT_ENV}")
        self.credentials = credentials or Credentials.from_environment()
        self._bearer = Bearer(self.credentials)
        options: list[tuple[str, str | int]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            *_KEEPALIVE,
        ]
        self.channel = traced(self.credentials.channel(self.endpoint, options))
        self.datasets = self._stub(dataset_pb2_grpc.DatasetServiceStub)
        self.ingestions = self._stub(dataset_pb2_grpc.IngestionServiceStub)
        self.training = self._stub(training_pb2_grpc.TrainingServiceStub)
        self.models = self._stub(model_pb2_grpc.ModelServiceStub)
        self.retrieval = self._stub(retrieval_pb2_grpc.RetrievalServiceStub)
        self.generation = self._stub(generation_pb2_grpc.GenerationServiceStub)
        self.evaluation = self._stub(evaluation_pb2_grpc.EvaluationServiceStub)
        # Calls by collection: (Get, its request), (Watch, its request), (Cancel, its request).
        self._calls: dict[str, tuple[tuple[Callable[..., Any], type[Message]], ...]] = {
            "datasets": ((self.datasets.GetDataset, dataset_pb2.GetDatasetRequest),),
            "datasets/versions": ((self.datasets.GetDatasetVersion, dataset_pb2.GetDatasetVersionRequest),),
            "models": ((self.models.GetModel, model_pb2.GetModelRequest),),
            "models/versions": ((self.models.GetModelVersion, model_pb2.GetModelVersionRequest),),
            "ingestions": (
                (self.ingestions.GetIngestion, dataset_pb2.GetIngestionRequest),
                (self.ingestions.WatchIngestion, dataset_pb2.WatchIngestionRequest),
                (self.ingestions.CancelIngestion, dataset_pb2.CancelIngestionRequest),
            ),
            "curations": (
                (self.ingestions.GetCuration, dataset_pb2.GetCurationRequest),
                (self.ingestions.WatchCuration, dataset_pb2.WatchCurationRequest),
                (self.ingestions.CancelCuration, dataset_pb2.CancelCurationRequest),
            ),
            "runs": (
                (self.training.GetRun, training_pb2.GetRunRequest),
                (self.training.WatchRun, training_pb2.WatchRunRequest),
                (self.training.CancelRun, training_pb2.CancelRunRequest),
            ),
            "indexes": (
                (self.retrieval.GetIndex, retrieval_pb2.GetIndexRequest),
                (self.retrieval.WatchIndex, retrieval_pb2.WatchIndexRequest),
                (self.retrieval.CancelIndex, retrieval_pb2.CancelIndexRequest),
            ),
            "evaluations": (
                (self.evaluation.GetEvaluation, evaluation_pb2.GetEvaluationRequest),
                (self.evaluation.WatchEvaluation, evaluation_pb2.WatchEvaluationRequest),
                (self.evaluation.CancelEvaluation, evaluation_pb2.CancelEvaluationRequest),
            ),
        }

    def get(self, name: str) -> Any:
        """The resource of that name, whatever its kind."""
        call, request = self._call(name, 0)
        return call(request(name=name))

    def watch(self, name: str, *, after_event: int = 0) -> Iterator[JobEvent]:
        """Events of a job until it ends."""
        call, request = self._call(name, 1)
        return call(request(name=name, after_event=after_event))

    def cancel(self, name: str) -> Any:
        """Asks a job to stop; returns the resource."""
        call, request = self._call(name, 2)
        return call(request(name=name))

    def wait(self, name: str, *, on_event: Callable[[JobEvent], None] | None = None) -> Any:
        """Follows a job to its end and returns the resource; raises the job's own error if it did not succeed."""
        for event in self.watch(name):
            if on_event is not None:
                on_event(event)
        resource = self.get(name)
        if resource.job.state != JobStatus.SUCCEEDED:
            error = from_status(resource.job.error)
            error.args = (f"{name}: {error}",)
            raise error
        return resource

    def close(self) -> None:
        """Closes the channel."""
        self.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stub(self, cls: Callable[[grpc.Channel], Any]) -> Any:
        return _Stub(cls(self.channel), self.endpoint, self._bearer)

    def _call(self, name: str, index: int) -> tuple[Callable[..., Any], type[Any]]:
        calls = self._calls.get("/".join(name.split("/")[::2]), ())
        if len(name.split("/")) % 2 or index >= len(calls):
            raise invalid("name", f"{name!r} is not the name of a {'job' if index else 'resource'}")
        return calls[index]
