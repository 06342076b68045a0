"""Real workers of a real service through the executor; a thread of the test runs the pods as processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf import struct_pb2

from rebus.client import Client
from rebus.errors import AbortedError
from rebus.store import Store
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import CreateIngestionRequest, Ingestion, Source
from services.harness.runtime import Runtime
from services.harness.server import Host, load
from tests.services.executors.kubernetes import kubelet
from tests.services.executors.kubernetes.cluster import Cluster
from tests.services.executors.kubernetes.kubelet import Kubelet
from tests.services.executors.kubernetes.test_executor import object_of, until

pytestmark = pytest.mark.slow
LONG = 20_000


@pytest.fixture
def node(small_cluster: Cluster, tmp_path: Path) -> Iterator[Kubelet]:
    (tmp_path / "node").mkdir()
    with kubelet.running(small_cluster, tmp_path / "node") as found:
        yield found


@contextmanager
def served(cluster: Cluster, store: Store, tmp_path: Path) -> Iterator[Client]:
    """The ingest service with an executor of its own, and a client of it."""
    executor = cluster.executor(store)
    host = Host(load(["ingest"]), Runtime(store, executor, tmp_path / "cache"), address="127.0.0.1:0")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(host.start(), loop).result(60)
    try:
        with Client(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        asyncio.run_coroutine_threadsafe(host.stop(grace=1.0), loop).result(60)
        executor.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def ingestion(num_scenes: int) -> CreateIngestionRequest:
    settings = struct_pb2.Struct()
    settings.update({"num_scenes": num_scenes, "seed": 1})
    return CreateIngestionRequest(
        ingestion=Ingestion(dataset="datasets/scenes", sources=[Source(reader="scenes", settings=settings)])
    )


def wait(client: Client, name: str, condition: Callable[[JobStatus], bool]) -> JobStatus:
    return until(lambda: found if condition(found := client.get(name).job) else None)


def test_a_job_succeeds_and_outlives_its_service(
    node: Kubelet, small_cluster: Cluster, store: Store, tmp_path: Path
) -> None:
    with served(small_cluster, store, tmp_path) as client:
        name = client.ingestions.CreateIngestion(ingestion(300)).name
        wait(client, name, lambda job: job.state == JobStatus.RUNNING)
    with served(small_cluster, store, tmp_path) as client:
        found = client.wait(name)
        assert (found.job.state, found.job.attempts) == (JobStatus.SUCCEEDED, 1)
        assert found.num_samples > 0
    assert list(node.processes) == [object_of(name)]


def test_a_killed_worker_is_reported_with_its_signal(
    node: Kubelet, small_cluster: Cluster, store: Store, tmp_path: Path
) -> None:
    with served(small_cluster, store, tmp_path) as client:
        name = client.ingestions.CreateIngestion(ingestion(LONG)).name
        wait(client, name, lambda job: job.state == JobStatus.RUNNING)
        node.processes[object_of(name)].kill()
        with pytest.raises(AbortedError, match="the worker was killed by SIGKILL"):
            client.wait(name)


def test_cancel_stops_the_worker(node: Kubelet, small_cluster: Cluster, store: Store, tmp_path: Path) -> None:
    with served(small_cluster, store, tmp_path) as client:
        name = client.ingestions.CreateIngestion(ingestion(LONG)).name
        wait(client, name, lambda job: job.state == JobStatus.RUNNING)
        client.cancel(name)
        wait(client, name, lambda job: job.state == JobStatus.CANCELLED)
        assert node.processes[object_of(name)].wait(60) == 0, "the worker said so itself"
        until(lambda: object_of(name) not in small_cluster.names())


def test_a_drained_ingestion_goes_on_by_itself(
    node: Kubelet, small_cluster: Cluster, store: Store, tmp_path: Path
) -> None:
    with served(small_cluster, store, tmp_path) as client:
        name = client.ingestions.CreateIngestion(ingestion(LONG)).name
        wait(client, name, lambda job: job.state == JobStatus.RUNNING)
        node.drain(object_of(name))
        job = wait(client, name, lambda job: job.attempts == 2)
        assert job.preemptions == 1
        client.cancel(name)
        wait(client, name, lambda job: job.state == JobStatus.CANCELLED)
