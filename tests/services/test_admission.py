"""Admission: bounds hold, waiting is fair, refusals say when to come again, nothing leaks."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from rebus.client import Client, RetryPolicy
from rebus.errors import InvalidArgumentError, ResourceExhaustedError
from rebus.store import Store
from rebus.v1 import training_pb2 as pb
from rebus.v1 import training_pb2_grpc
from rebus.v1.common_pb2 import JobEvent
from services.harness.admission import Places, peer_host
from services.harness.embedded import hosting
from services.harness.limits import Limits, PoolLimits
from services.harness.policies import POLICIES, policy_of
from services.harness.runtime import Context, Runtime, run
from services.harness.server import Host, Service
from tests.waiting import until

SMALL = PoolLimits(
    concurrent=4,
    concurrent_per_principal=3,
    bytes=100,
    bytes_per_principal=60,
    queued=4,
    queued_per_principal=2,
    wait_seconds=30,
    retry_seconds=0.25,
)


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 20))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_principal_at_its_limit_waits_and_lets_others_pass() -> None:
    async def scene() -> None:
        places = Places(SMALL)
        for _ in range(3):
            await places.take("a", 1, 1)
        waiting = asyncio.create_task(places.take("a", 1, 30))
        await settle()
        assert (places.running, places.queued) == (3, 1)
        await places.take("b", 1, 1)
        places.give_back("b", 1)
        await settle()
        assert not waiting.done()
        places.give_back("a", 1)
        await waiting
        assert (places.running, places.queued) == (3, 0)

    play(scene())


def test_waiters_are_admitted_in_order() -> None:
    async def scene() -> None:
        places = Places(replace(SMALL, concurrent=1, concurrent_per_principal=1))
        await places.take("x", 1, 1)
        order: list[str] = []

        async def caller(name: str) -> None:
            await places.take(name, 1, 30)
            order.append(name)
            places.give_back(name, 1)

        tasks = []
        for name in "abcd":
            tasks.append(asyncio.create_task(caller(name)))
            await settle()
        places.give_back("x", 1)
        await asyncio.gather(*tasks)
        assert order == list("abcd")

    play(scene())


def test_a_large_request_is_not_passed_over_by_small_ones() -> None:
    async def scene() -> None:
        places = Places(SMALL)
        await places.take("a", 60, 1)
        large = asyncio.create_task(places.take("b", 50, 30))
        await settle()
        small = asyncio.create_task(places.take("c", 1, 30))
        await settle()
        assert not large.done()
        assert not small.done()
        places.give_back("a", 60)
        await asyncio.gather(large, small)
        assert places.bytes == 51

    play(scene())


@pytest.mark.parametrize("principals", ["aa", "abcd"])
def test_a_full_queue_refuses_and_says_when_to_come_again(principals: str) -> None:
    async def scene() -> None:
        places = Places(replace(SMALL, concurrent=1, concurrent_per_principal=1))
        await places.take("x", 1, 1)
        waiting = [asyncio.create_task(places.take(name, 1, 30)) for name in principals]
        await settle()
        with pytest.raises(ResourceExhaustedError, match="the queue is full") as caught:
            await places.take(principals[-1], 1, 30)
        assert caught.value.retry_seconds == 0.25
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (places.running, places.queued) == (1, 0)

    play(scene())


def test_the_wait_is_bounded() -> None:
    async def scene() -> None:
        places = Places(replace(SMALL, concurrent=1, concurrent_per_principal=1, wait_seconds=0.01))
        await places.take("x", 1, 1)
        with pytest.raises(ResourceExhaustedError, match="no place became free in time"):
            await places.take("y", 1, 30)
        assert places.queued == 0

    play(scene())


def test_whatever_happens_bounds_hold_and_all_is_given_back() -> None:
    async def scene() -> None:
        draw = random.Random(0)
        places = Places(replace(SMALL, queued=50, queued_per_principal=20, wait_seconds=0.01))
        running: dict[str, list[int]] = {name: [] for name in "abc"}
        most = 0

        async def caller(name: str, size: int, rest: int) -> None:
            nonlocal most
            try:
                await places.take(name, size, 30)
            except ResourceExhaustedError:
                return
            running[name].append(size)
            try:
                everybody = [held for sizes in running.values() for held in sizes]
                most = max(most, len(everybody))
                assert len(everybody) <= 4
                assert sum(everybody) <= 100
                assert len(running[name]) <= 3
                assert sum(running[name]) <= 60
                for _ in range(rest):
                    await asyncio.sleep(0)
            finally:
                running[name].remove(size)
                places.give_back(name, size)

        tasks = []
        for _ in range(2000):
            tasks.append(asyncio.create_task(caller(draw.choice("abc"), draw.randint(1, 60), draw.randint(0, 9))))
            if draw.random() < 0.2:
                draw.choice(tasks).cancel()
            if draw.random() < 0.5:
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failures = [r for r in results if isinstance(r, Exception) and not isinstance(r, asyncio.CancelledError)]
        assert failures == []
        assert most == 4
        assert (places.running, places.bytes, places.queued) == (0, 0, 0)
        assert not places._shares

    play(scene())


@pytest.mark.parametrize(
    ("peer", "host"),
    [("ipv4:10.0.0.1:555", "10.0.0.1"), ("ipv6:%5B::1%5D:7", "[::1]"), ("unix:", "anonymous"), ("", "anonymous")],
)
def test_the_fallback_principal_is_the_address_without_its_port(peer: str, host: str) -> None:
    assert peer_host(peer) == host


def test_limits_come_from_variables_and_flags() -> None:
    limits = Limits.of(
        ["calls.queued=7"], {"REBUS_LIMITS": "calls.queued=9,max_upload_bytes=1024,calls.queued_per_principal=3"}
    )
    assert (limits.calls.queued, limits.calls.queued_per_principal, limits.max_upload_bytes) == (7, 3, 1024)
    assert limits.calls.concurrent == Limits().calls.concurrent
    assert limits.watches == Limits().watches


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("calls.concurent=3", "did you mean 'concurrent'"),
        ("calls.concurrent=1", "concurrent_per_principal <= concurrent"),
        ("call.concurrent=3", "expected calls, watches or uploads"),
        ("max_message_bytes=x", "limit.max_message_bytes"),
        ("max_message_bytes", "expected NAME=VALUE"),
        ("max_message_bytes=999999999999", "max_message_bytes <= bytes_per_principal"),
        ("max_upload_bytes=0", "max_upload_bytes of at least 1"),
    ],
)
def test_a_bad_limit_is_named(setting: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Limits.of([setting], {})


def test_the_table_holds_every_verb_of_the_contract_and_no_other() -> None:
    pool = descriptor_pool.Default()
    methods = [
        method.name
        for name in ("dataset", "training", "model", "retrieval", "generation", "evaluation", "media")
        for service in pool.FindFileByName(f"rebus/v1/{name}.proto").services_by_name.values()
        for method in service.methods
    ]
    verbs = {next(verb for verb in POLICIES if method.startswith(verb)) for method in methods}
    assert verbs == set(POLICIES)
    assert {policy_of(f"/rebus.v1.X/{m}").pool for m in methods if m.startswith("Watch")} == {"watches"}
    assert policy_of("/rebus.v1.MediaService/UploadMedia").pool == "uploads"


class Blocking(training_pb2_grpc.TrainingServiceServicer):
    """Calls that last until the test opens the gate, and that count how many run."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.most = self.now = self.served = 0
        self._lock = threading.Lock()

    def _work(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.gate.wait(30)
        with self._lock:
            self.now -= 1
            self.served += 1

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.Run:
        await run(self._work)
        return pb.Run(name=request.name)

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.Run:
        await run(self._work)
        return request.run

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> Any:
        yield JobEvent(sequence=1)
        await asyncio.sleep(30)


@contextmanager
def blocking(store: Store, limits: Limits) -> Iterator[tuple[Blocking, str]]:
    """A real server of one service whose calls block."""
    servicer = Blocking()

    def add(server: grpc.aio.Server, runtime: Runtime) -> None:
        training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)

    service = Service(("rebus.v1.TrainingService",), add)
    with hosting(lambda: Host([service], Runtime.open(store.url, limits=limits), address="127.0.0.1:0")) as endpoint:
        try:
            yield servicer, endpoint
        finally:
            servicer.gate.set()


TIGHT = Limits(
    calls=PoolLimits(
        concurrent=2, concurrent_per_principal=2, queued=3, queued_per_principal=3, wait_seconds=30, retry_seconds=0.25
    ),
    watches=PoolLimits(concurrent=1, concurrent_per_principal=1, retry_seconds=0.25),
)


def test_ten_times_the_capacity_is_served_in_part_and_the_rest_refused(store: Store) -> None:
    with blocking(store, TIGHT) as (servicer, endpoint), grpc.insecure_channel(endpoint) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        futures = [stub.GetRun.future(pb.GetRunRequest(name="runs/x"), timeout=60) for _ in range(50)]
        refused = [future for future in futures if _wait_refused(future, futures, 45)]
        servicer.gate.set()
        answers = [future.result(30) for future in futures if future not in refused]
    assert (len(refused), len(answers)) == (45, 5)
    assert (servicer.most, servicer.served) == (2, 5)
    for future in refused:
        assert future.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(future)
        assert status is not None
        retries = [info for info in (_retry_info(detail) for detail in status.details) if info is not None]
        assert [info.retry_delay.ToMilliseconds() for info in retries] == [250]


def _wait_refused(future: Any, futures: list[Any], expected: int) -> bool:
    """Whether the call was refused, once as many were as are expected to be; the others hang at the gate."""
    deadline = threading.Event()
    for _ in range(300):
        if sum(other.done() for other in futures) >= expected:
            break
        deadline.wait(0.1)
    return future.done()


def _retry_info(detail: Any) -> error_details_pb2.RetryInfo | None:
    info = error_details_pb2.RetryInfo()
    return info if detail.Unpack(info) else None


def test_health_and_reflection_are_answered_by_a_full_server(store: Store) -> None:
    limits = Limits(calls=PoolLimits(concurrent=1, concurrent_per_principal=1))
    with blocking(store, limits) as (servicer, endpoint), grpc.insecure_channel(endpoint) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        first = stub.GetRun.future(pb.GetRunRequest(name="runs/x"), timeout=30)
        until(lambda: servicer.now == 1)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRun(pb.GetRunRequest(name="runs/x"), timeout=30)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        assert next(reflection.ServerReflectionInfo(iter([request]), timeout=10)).list_services_response.service
        servicer.gate.set()
        assert first.result(30).name == "runs/x"


def test_bytes_of_requests_in_flight_are_bounded(store: Store) -> None:
    pool = PoolLimits(concurrent=9, concurrent_per_principal=9, bytes=100_000, bytes_per_principal=100_000)
    large = pb.CreateRunRequest(run=pb.Run(recipe="x" * 60_000, datasets={"a": "datasets/a/versions/1"}))
    limits = Limits(calls=pool, watches=pool, uploads=pool, max_message_bytes=100_000)
    with blocking(store, limits) as (servicer, endpoint), grpc.insecure_channel(endpoint) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        first = stub.CreateRun.future(large, timeout=30)
        until(lambda: servicer.now == 1)
        with pytest.raises(grpc.RpcError) as caught:
            stub.CreateRun(large, timeout=30)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        small = stub.GetRun.future(pb.GetRunRequest(name="runs/x"), timeout=30)
        until(lambda: servicer.now == 2)
        servicer.gate.set()
        assert (first.result(30), small.result(30).name) == (large.run, "runs/x")
        assert stub.CreateRun(large, timeout=30) == large.run


def test_watches_fill_their_own_places_only(store: Store) -> None:
    with blocking(store, TIGHT) as (servicer, endpoint), grpc.insecure_channel(endpoint) as channel:
        servicer.gate.set()
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        watch = stub.WatchRun(pb.WatchRunRequest(name="runs/x"), timeout=30)
        assert next(watch).sequence == 1
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.WatchRun(pb.WatchRunRequest(name="runs/x"), timeout=30))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.GetRun(pb.GetRunRequest(name="runs/x"), timeout=30).name == "runs/x"
        watch.cancel()
        with Client(endpoint, retry=RetryPolicy(attempts=20)) as client:
            assert next(client.training.WatchRun(pb.WatchRunRequest(name="runs/x"))).sequence == 1


def test_the_client_comes_again_after_a_refusal(store: Store) -> None:
    limits = Limits(calls=PoolLimits(concurrent=1, concurrent_per_principal=1, retry_seconds=0.05))
    policy = RetryPolicy(attempts=100, initial_seconds=0.05, max_seconds=0.1)
    with blocking(store, limits) as (servicer, endpoint), Client(endpoint, retry=policy) as client:
        threading.Timer(0.3, servicer.gate.set).start()
        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(lambda _: client.get("runs/x").name, range(8)))
    assert names == ["runs/x"] * 8
    assert servicer.most == 1
