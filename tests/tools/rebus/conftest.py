"""Runs the command as a user does, on a store of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from rebus.config import digest
from rebus.store import Store, documents, manifests
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import Dataset, DatasetVersion, Ingestion, Source
from rebus.v1.evaluation_pb2 import BenchmarkSpec, Evaluation, Score
from rebus.v1.model_pb2 import Model, ModelVersion
from rebus.v1.training_pb2 import MixtureShare, Run
from tools.rebus.main import app

Command = Callable[..., Result]
SUCCEEDED = JobStatus(state=JobStatus.SUCCEEDED)


@pytest.fixture
def rebus(store: Store, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``rebus("models", "list")`` on the test's store."""
    monkeypatch.setenv("REBUS_STORE", store.url)
    monkeypatch.delenv("REBUS_ENDPOINT", raising=False)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def history(store: Store) -> Store:
    """A dataset version, the run that consumed it, the model made of that, and its evaluation."""
    store.put("datasets/d/data.lance/data/0.lance", b"rows")
    manifest = manifests.publish(store, "datasets/d/versions/1", ["data.lance/data/0.lance"], base="datasets/d")
    documents.create(store, Dataset(name="datasets/d", latest_version="datasets/d/versions/1"))
    documents.create(
        store,
        DatasetVersion(name="datasets/d/versions/1", producer="ingestions/i", digest=manifest.digest, num_samples=4),
    )
    source = Source(reader="image-folder", uri="/pictures [old]")
    documents.create(store, Ingestion(name="ingestions/i", dataset="datasets/d", sources=[source], job=SUCCEEDED))
    share = MixtureShare(source="pairs", dataset_version="datasets/d/versions/1", num_samples=9)
    share.dataset_digest = manifest.digest
    recipe = {"name": "tiny"}
    run = Run(name="runs/r", recipe="name: tiny", recipe_digest=digest(recipe), code_revision="abc", job=SUCCEEDED)
    run.datasets["d"] = "datasets/d/versions/1"
    run.mixture.append(share)
    documents.create(store, run)
    store.put("models/m/versions/1/model.safetensors", b"weights")
    weights = manifests.publish(store, "models/m/versions/1")
    version = ModelVersion(name="models/m/versions/1", architecture="mllm", run="runs/r", digest=weights.digest)
    version.mixture.append(share)
    documents.create(store, version)
    documents.create(store, Model(name="models/m", latest_version=version.name, aliases={"champion": version.name}))
    evaluation = Evaluation(name="evaluations/e", model_version=version.name, code_revision="abc", job=SUCCEEDED)
    evaluation.model_digest = weights.digest
    evaluation.benchmarks.append(BenchmarkSpec(benchmark="b", dataset_version="datasets/d/versions/1"))
    evaluation.scores.append(
        Score(benchmark="b", group="count", metric="exact_match", value=0.75, low=0.5, high=1, num_items=4, chance=0.25)
    )
    documents.create(store, evaluation)
    return store
