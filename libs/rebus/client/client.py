"""One client for all services behind one endpoint."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from rebus import cancellation
from rebus.client.credentials import Bearer, Credentials
from rebus.client.errors import translated
from rebus.client.retries import RetryPolicy, call_with_retries, is_idempotent, is_transient
from rebus.client.tracing import traced
from rebus.client.uploads import opened, requests
from rebus.errors import (
    CancelledError,
    DeadlineExceededError,
    RebusError,
    UnavailableError,
    invalid,
)
from rebus.status import from_status
from rebus.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    evaluation_pb2,
    evaluation_pb2_grpc,
    generation_pb2_grpc,
    media_pb2,
    media_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    retrieval_pb2,
    retrieval_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from rebus.v1.common_pb2 import JobEvent, JobStatus

ENDPOINT_ENV = "REBUS_ENDPOINT"
# A page of samples carries their images; what requests may hold is the server's to say.
MAX_RESPONSE_BYTES = 64 << 20
DEFAULT_TIMEOUT_SECONDS = 60.0
_KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]
# gRPC's own backoff grows to two minutes, which is longer than a server takes to come back.
_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
# How long a watch tries to find a server again that went away.
RECONNECT_SECONDS = 60.0
UPLOAD_TIMEOUT_SECONDS = 900.0


class _Stub:
    """A generated stub whose calls raise domain errors, carry a deadline and are repeated where that is safe."""

    def __init__(self, stub: Any, endpoint: str, bearer: Bearer, retry: RetryPolicy) -> None:
        self._stub = stub
        self._endpoint = endpoint
        self._bearer = bearer
        self._retry = retry

    def __getattr__(self, method: str) -> Callable[..., Any]:
        call = getattr(self._stub, method)
        if isinstance(call, grpc.UnaryStreamMultiCallable):
            return lambda request, timeout=None: self._stream(call, method, request, timeout)
        return lambda request, timeout=DEFAULT_TIMEOUT_SECONDS: self._unary(call, method, request, timeout)

    def _unary(self, call: Any, method: str, request: Message, timeout: float | None) -> Any:
        def attempt(seconds: float) -> Any:
            with translated(self._endpoint):
                return call(request, timeout=_bounded(seconds), metadata=self._bearer.metadata())

        return call_with_retries(
            attempt,
            self._retry,
            idempotent=is_idempotent(method, request),
            timeout=min(math.inf if timeout is None else timeout, cancellation.current().remaining()),
            sleep=time.sleep,
        )

    def _stream(self, call: Any, method: str, request: Message, timeout: float | None) -> Iterator[Any]:
        """Repeated only until the first response: what was seen is not said again."""
        seconds = min(math.inf if timeout is None else timeout, cancellation.current().remaining())

        def attempt(left: float) -> tuple[Any, list[Any]]:
            with translated(self._endpoint):
                responses = call(request, timeout=_bounded(left), metadata=self._bearer.metadata())
                return responses, list(itertools.islice(responses, 1))

        responses, first = call_with_retries(
            attempt, self._retry, idempotent=is_idempotent(method, request), timeout=seconds, sleep=time.sleep
        )
        try:
            yield from first
            with translated(self._endpoint):
                yield from responses
        finally:
            responses.cancel()


def _interrupted(error: RebusError) -> bool:
    """Whether a watch goes on after it: the server went away, drains, is full, or ended the longest allowed stream."""
    return isinstance(error, UnavailableError | CancelledError | DeadlineExceededError) or is_transient(
        error, idempotent=True
    )


def _bounded(seconds: float) -> float | None:
    """A timeout as gRPC takes it: ``None`` where the server's own default bounds the call."""
    return None if seconds == math.inf else max(0.0, seconds)


class Client:
    """Stubs for every service, and the calls that every user needs: ``get``, ``watch``, ``wait``, ``upload``.

    Usable as a context manager. Errors are those of ``rebus.errors``. Without ``credentials``, they are those of the
    ``REBUS_*`` variables.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        credentials: Credentials | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.endpoint = endpoint or os.environ.get(ENDPOINT_ENV, "")
        if not self.endpoint:
            raise invalid("endpoint", f"pass host:port or set {ENDPOINT_ENV}")
        self.credentials = credentials or Credentials.from_environment()
        self._bearer = Bearer(self.credentials)
        self._retry = retry or RetryPolicy()
        options: list[tuple[str, str | int]] = [
            ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
            *_KEEPALIVE,
            *_RECONNECT,
        ]
        self.channel = traced(self.credentials.channel(self.endpoint, options))
        self.datasets = self._stub(dataset_pb2_grpc.DatasetServiceStub)
        self.ingestions = self._stub(dataset_pb2_grpc.IngestionServiceStub)
        self.training = self._stub(training_pb2_grpc.TrainingServiceStub)
        self.models = self._stub(model_pb2_grpc.ModelServiceStub)
        self.retrieval = self._stub(retrieval_pb2_grpc.RetrievalServiceStub)
        self.generation = self._stub(generation_pb2_grpc.GenerationServiceStub)
        self._upload = media_pb2_grpc.MediaServiceStub(self.channel).UploadMedia
        self.media = self._stub(media_pb2_grpc.MediaServiceStub)
        self.evaluation = self._stub(evaluation_pb2_grpc.EvaluationServiceStub)
        # Calls by collection: (Get, its request), (Watch, its request), (Cancel, its request).
        self._calls: dict[str, tuple[tuple[Callable[..., Any], type[Message]], ...]] = {
            "datasets": ((self.datasets.GetDataset, dataset_pb2.GetDatasetRequest),),
            "datasets/versions": ((self.datasets.GetDatasetVersion, dataset_pb2.GetDatasetVersionRequest),),
            "media": ((self.media.GetMedia, media_pb2.GetMediaRequest),),
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
        """Events of a job until it ends, each once and in order, also over restarts of the server.

        Raises ``UnavailableError`` if the server stays away for longer than ``RECONNECT_SECONDS``.
        """
        call, request = self._call(name, 1)
        away_since = math.inf
        while True:
            began = time.monotonic()
            try:
                for event in call(request(name=name, after_event=after_event)):
                    after_event, away_since = event.sequence, math.inf
                    yield event
                return
            except RebusError as error:
                now = time.monotonic()
                away_since = now if now - began >= RECONNECT_SECONDS else min(away_since, now)
                if not _interrupted(error) or now - away_since >= RECONNECT_SECONDS or cancellation.current().stopped():
                    raise
                time.sleep(self._retry.delay(1, error))

    def upload(self, source: Path | bytes) -> str:
        """Stores a file or bytes on the server and returns the name that requests refer to it by, ``media/{SHA-256}``.

        Sent in chunks, so its size does not matter below the server's limit. An upload that breaks off starts again
        from its beginning. Raises ``InvalidArgumentError`` for what is empty, unreadable or larger than the limit.
        """

        def attempt(seconds: float) -> Any:
            with opened(source) as file, translated(self.endpoint):
                return self._upload(requests(file), timeout=seconds, metadata=self._bearer.metadata())

        done = call_with_retries(
            attempt,
            self._retry,
            idempotent=True,
            timeout=min(UPLOAD_TIMEOUT_SECONDS, cancellation.current().remaining()),
            sleep=time.sleep,
        )
        return done.name

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
        return _Stub(cls(self.channel), self.endpoint, self._bearer, self._retry)

    def _call(self, name: str, index: int) -> tuple[Callable[..., Any], type[Any]]:
        calls = self._calls.get("/".join(name.split("/")[::2]), ())
        if len(name.split("/")) % 2 or index >= len(calls):
            raise invalid("name", f"{name!r} is not the name of a {'job' if index else 'resource'}")
        return calls[index]
