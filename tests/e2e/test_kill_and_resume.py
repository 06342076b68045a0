"""A training process killed at a random step and resumed equals one that was never disturbed, bit for bit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from google.protobuf import struct_pb2

from rebus.client import Client
from rebus.config import load_yaml
from rebus.errors import AbortedError
from rebus.jobs.processes import process_path
from rebus.store import Store, manifests
from rebus.v1.dataset_pb2 import CreateIngestionRequest, Ingestion, Source
from rebus.v1.training_pb2 import CreateRunRequest, ResumeRunRequest, Run
from services.harness.embedded import hosted
from services.harness.runtime import Runtime

pytestmark = pytest.mark.slow
# Steps between the last at which the process may be killed and the end: news of a step takes a moment to arrive.
MARGIN_STEPS = 100
RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "smoke-scenes.yaml"
WAIT_SECONDS = 240.0


@pytest.fixture
def client(store: Store, _own_cache: None) -> Iterator[Client]:
    with hosted(store.url, ["ingest", "training"]) as endpoint, Client(endpoint) as opened:
        yield opened


def _dataset(client: Client) -> str:
    settings = struct_pb2.Struct()
    settings.update({"num_scenes": 120, "num_pairs": 30, "num_texts": 20, "seed": 3})
    sources = [Source(reader="scenes", settings=settings)]
    request = CreateIngestionRequest(ingestion=Ingestion(dataset="datasets/scenes", sources=sources))
    return client.wait(client.ingestions.CreateIngestion(request).name).dataset_version


def _start(client: Client, recipe: dict[str, Any], version: str) -> str:
    bound = {binding["dataset"]: version for binding in recipe["data"].values()}
    return client.training.CreateRun(
        CreateRunRequest(run=Run(recipe=yaml.safe_dump(recipe), datasets=bound, seed=11))
    ).name


def _kill_after_step(client: Client, store: Store, name: str, step: int) -> None:
    """SIGKILL to the training process as soon as it reports a step at or above ``step``."""
    supervisor = json.loads(process_path(Runtime.open(store.url).cache_dir, name).read_text())["pid"]
    for event in client.watch(name):
        if event.kind == "metrics" and event.values["step"] >= step:
            psutil.Process(supervisor).children()[0].kill()
            return
    raise AssertionError(f"{name} ended before step {step}")


def _wait_for_process(store: Store, name: str) -> None:
    path, deadline = process_path(Runtime.open(store.url).cache_dir, name), time.monotonic() + WAIT_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _losses(client: Client, name: str) -> dict[int, dict[str, float]]:
    """Losses by step as last reported: steps repeated after a resume overwrite those before it."""
    losses: dict[int, dict[str, float]] = {}
    for event in client.watch(name):
        if event.kind == "metrics":
            values = {k: v for k, v in event.values.items() if k.startswith("loss")}
            losses[int(event.values["step"])] = values
    return losses


def test_a_killed_run_resumes_bit_for_bit(client: Client, store: Store) -> None:
    recipe = load_yaml(RECIPE)
    recipe["report_every_steps"] = 1
    recipe["checkpoint"] = {"every_steps": 5, "keep": 2}
    steps = sum(stage["steps"] for stage in recipe["stages"])
    at = random.randrange(2, steps)
    recipe["stages"][-1]["steps"] += MARGIN_STEPS
    steps += MARGIN_STEPS
    print(f"killing after step {at} of {steps}")
    version = _dataset(client)
    whole, broken = _start(client, recipe, version), _start(client, recipe, version)

    _wait_for_process(store, broken)
    _kill_after_step(client, store, broken, at)
    with pytest.raises(AbortedError, match="killed by SIGKILL"):
        client.wait(broken)
    before = _losses(client, broken)
    client.training.ResumeRun(ResumeRunRequest(name=broken))

    resumed, undisturbed = client.wait(broken), client.wait(whole)
    assert resumed.job.attempts == 2
    assert max(before) < steps
    assert _losses(client, broken) == _losses(client, whole)
    assert list(_losses(client, whole)) == list(range(1, steps + 1))
    assert resumed.mixture == undisturbed.mixture
    digests = [manifests.read(store, f"{run.checkpoint}").entries for run in (resumed, undisturbed)]
    weights = [{e.path: e.sha256 for e in entries if e.path.endswith(".safetensors")} for entries in digests]
    assert weights[0] == weights[1]
    assert weights[0]
