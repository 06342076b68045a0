"""Deadlines and cancellation: the time left is known everywhere, and work stops when it ends."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import torch

from rebus import cancellation
from rebus.client import Client
from rebus.data.sample import Segment
from rebus.errors import CancelledError, DeadlineExceededError
from rebus.generation import Generator, Prompt, Sampling
from rebus.store import Store
from rebus.v1 import common_pb2, generation_pb2, generation_pb2_grpc, training_pb2_grpc
from rebus.v1 import training_pb2 as pb
from services.generation.servicer import GenerationServicer
from services.harness import policies
from services.harness.embedded import hosting
from services.harness.limits import Limits, PoolLimits
from services.harness.runtime import Context, Runtime, run
from services.harness.server import Host, Service
from tests.tiny_model import TEXTS, tiny_encoder, tiny_model, tiny_tokenizer


class Stepping(training_pb2_grpc.TrainingServiceServicer):
    """Work in small steps that says how long it may go on, and counts its steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.remaining = math.nan
        self.ended = threading.Event()

    def _work(self) -> None:
        scope = cancellation.current()
        self.remaining = scope.remaining()
        try:
            for _ in range(3000):
                scope.check()
                self.steps += 1
                time.sleep(0.01)
        finally:
            self.ended.set()

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.Run:
        await run(self._work)
        return pb.Run()


@contextmanager
def serving(store: Store, servicer: Any, add_to: Any, name: str, limits: Limits | None = None) -> Iterator[str]:
    def add(server: grpc.aio.Server, runtime: Runtime) -> None:
        add_to(servicer, server)

    service = Service((name,), add)
    with hosting(lambda: Host([service], Runtime.open(store.url, limits=limits), address="127.0.0.1:0")) as endpoint:
        yield endpoint


@contextmanager
def stepping(store: Store, limits: Limits | None = None) -> Iterator[tuple[Stepping, Any]]:
    servicer = Stepping()
    add = training_pb2_grpc.add_TrainingServiceServicer_to_server
    with (
        serving(store, servicer, add, "rebus.v1.TrainingService", limits) as endpoint,
        grpc.insecure_channel(endpoint) as channel,
    ):
        yield servicer, training_pb2_grpc.TrainingServiceStub(channel)


REQUEST = pb.GetRunRequest(name="runs/x")


def test_work_stops_at_the_clients_deadline(store: Store) -> None:
    with stepping(store) as (servicer, stub):
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRun(REQUEST, timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert servicer.ended.wait(10)
        assert servicer.steps < 3000
        assert 0 < servicer.remaining <= 0.5


def test_work_stops_when_the_client_cancels(store: Store) -> None:
    with stepping(store) as (servicer, stub):
        call = stub.GetRun.future(REQUEST, timeout=60)
        while not servicer.steps:
            time.sleep(0.05)
        call.cancel()
        assert servicer.ended.wait(10)
        assert servicer.steps < 3000


def test_a_call_without_a_deadline_gets_the_methods_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policies.POLICIES, "Get", policies.Policy("calls", 0.5, 1))
    with stepping(store) as (servicer, stub):
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRun(REQUEST)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert servicer.ended.wait(10)
        assert 0 < servicer.remaining <= 0.5


def test_a_deadline_beyond_the_methods_bound_is_shortened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policies.POLICIES, "Get", policies.Policy("calls", 0.5, 0.5))
    with stepping(store) as (servicer, stub):
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRun(REQUEST, timeout=60)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 0 < servicer.remaining <= 0.5


def test_a_place_stays_taken_until_the_work_has_stopped(store: Store) -> None:
    limits = Limits(calls=PoolLimits(concurrent=1, concurrent_per_principal=1))
    gate, begun = threading.Event(), threading.Event()

    class Deaf(Stepping):
        def _work(self) -> None:
            begun.set()
            gate.wait(30)  # one long step that sees no cancellation

    servicer = Deaf()
    add = training_pb2_grpc.add_TrainingServiceServicer_to_server
    with (
        serving(store, servicer, add, "rebus.v1.TrainingService", limits) as endpoint,
        grpc.insecure_channel(endpoint) as channel,
    ):
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        call = stub.GetRun.future(REQUEST, timeout=60)
        assert begun.wait(10)
        call.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRun(REQUEST, timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.set()
        with Client(endpoint) as client:  # comes again until the place is free
            client.get("runs/x")


def test_a_call_to_another_service_gets_what_is_left(store: Store) -> None:
    with stepping(store) as (servicer, stub):
        del stub
        scope = cancellation.Scope(time.monotonic() + 0.5)
        failures: list[BaseException] = []

        def call(endpoint: str) -> None:
            cancellation.enter(scope)
            with Client(endpoint) as client:
                try:
                    client.get("runs/x")
                except DeadlineExceededError as error:
                    failures.append(error)

        with serving(
            store, servicer, training_pb2_grpc.add_TrainingServiceServicer_to_server, "rebus.v1.TrainingService"
        ) as endpoint:
            thread = threading.Thread(target=call, args=(endpoint,))
            thread.start()
            thread.join(20)
        assert len(failures) == 1
        assert 0 < servicer.remaining <= 0.5


def test_a_scope_says_why_it_ended() -> None:
    gone, late = cancellation.Scope(), cancellation.Scope(time.monotonic() - 1)
    gone.cancel()
    with pytest.raises(CancelledError):
        gone.check()
    with pytest.raises(DeadlineExceededError):
        late.check()
    assert (late.remaining(), cancellation.current().remaining()) == (0, math.inf)


class Slow(torch.nn.Module):
    """Counts the decoder's steps, each long enough for a cancellation to come between two."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.steps = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.steps += 1
        time.sleep(0.02)
        return self.inner(*args, **kwargs)


def test_generation_stops_when_the_client_cancels(store: Store) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    slow = model.decoder.layers[0] = Slow(model.decoder.layers[0])
    generator = Generator(model, tiny_encoder(tokenizer))
    generator._never_made.append(tokenizer.eos_token_id)

    class Servicer(GenerationServicer):
        def __init__(self) -> None:
            super().__init__(Runtime.open(store.url))
            self._models = type("Loaded", (), {"get": lambda _, name: (name, generator)})()

    request = generation_pb2.GenerateRequest(
        model_version="models/x/versions/1",
        segments=[common_pb2.Segment(text=TEXTS[0])],
        sampling=generation_pb2.SamplingParams(max_new_tokens=200, temperature=1),
    )
    add = generation_pb2_grpc.add_GenerationServiceServicer_to_server
    with (
        serving(store, Servicer(), add, "rebus.v1.GenerationService") as endpoint,
        grpc.insecure_channel(endpoint) as channel,
    ):
        answer = generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=60)
        next(answer)
        answer.cancel()
        seen = -1
        while seen != slow.steps:  # quiet for ten times as long as a step lasts
            seen = slow.steps
            time.sleep(0.2)
        assert 0 < seen < 200


def test_generation_in_the_library_stops_between_tokens() -> None:
    tokenizer = tiny_tokenizer()
    generator = Generator(tiny_model(tokenizer), tiny_encoder(tokenizer))
    scope = cancellation.Scope()
    chunks = generator.stream(Prompt(segments=[Segment(text="is")]), Sampling(max_new_tokens=50), scope.stopped)
    next(chunks)
    scope.cancel()
    with pytest.raises(CancelledError):
        list(chunks)
