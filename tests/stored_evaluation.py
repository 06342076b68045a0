"""A store with a tiny model version and a dataset version of scenes, and evaluations started over them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rebus.data.dataset import write_version
from rebus.data.scenes import ScenesConfig, generate_samples
from rebus.evaluation import job
from rebus.jobs.context import JobContext
from rebus.models import save_model
from rebus.store import Store, documents, manifests
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.contamination_pb2 import ContaminationPolicy
from rebus.v1.evaluation_pb2 import BenchmarkSpec, Evaluation
from rebus.v1.model_pb2 import Model, ModelVersion
from tests.tiny_model import tiny_model, tiny_tokenizer

MODEL, DATASET = "models/tiny/versions/1", "datasets/scenes/versions/1"


def fill(store: Store, folder: Path, *, run: str = "") -> None:
    """Stores ``MODEL`` (made by ``run``, if one is named) and ``DATASET``; weights pass through ``folder``."""
    _put_model(store, folder, run)
    settings = ScenesConfig(num_scenes=12, num_pairs=4, num_texts=0, image_size=16, questions_per_scene=4)
    samples = list(generate_samples(settings))
    held_out = {samples[at].id for at in (0, 3, 6, 12, 15)}
    dealt = [dataclasses.replace(s, split="test" if s.id in held_out else "train") for s in samples]
    assert write_version(store, "datasets/scenes", dealt).name == DATASET


def _put_model(store: Store, folder: Path, run: str) -> None:
    tokenizer = tiny_tokenizer()
    save_model(tiny_model(tokenizer), folder)
    tokenizer.save(folder)
    for path in folder.iterdir():
        store.upload(path, f"{MODEL}/{path.name}")
    digest = manifests.publish(store, MODEL).digest
    documents.create(store, ModelVersion(name=MODEL, architecture="mllm", digest=digest, run=run))
    documents.create(store, Model(name="models/tiny", aliases={"champion": MODEL}, latest_version=MODEL))


def start(
    store: Store,
    *benchmarks: BenchmarkSpec,
    name: str = "evaluations/e1",
    policy: ContaminationPolicy | None = None,
) -> JobContext:
    """A running evaluation, as the executor would start it."""
    asked = Evaluation(model_version="models/tiny/versions/champion", benchmarks=benchmarks, seed=5)
    if policy is not None:
        asked.contamination_policy.CopyFrom(policy)
    checked = job.checked_evaluation(store, asked)
    checked.name = name
    checked.job.state = JobStatus.RUNNING
    documents.create(store, checked)
    return JobContext(store, name, Path(store.url.removeprefix("file://")).parent / "cache")


def spec(benchmark: str, **fields: str | int) -> BenchmarkSpec:
    return BenchmarkSpec(benchmark=benchmark, dataset_version=DATASET, **fields)  # pyright: ignore[reportArgumentType]
