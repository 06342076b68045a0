"""The evaluation job over a real store, a real dataset version and a tiny real model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rebus.data.dataset import write_version
from rebus.data.scenes import ScenesConfig, generate_samples
from rebus.errors import CancelledError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from rebus.evaluation import job, outputs
from rebus.jobs.context import JobContext
from rebus.jobs.events import EventLog
from rebus.models import save_model
from rebus.store import Store, documents, manifests
from rebus.store.maintenance import fsck
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.evaluation_pb2 import BenchmarkSpec, Evaluation, Prediction
from rebus.v1.model_pb2 import Model, ModelVersion
from tests.libs.generation.tiny import tiny_model, tiny_tokenizer

MODEL, DATASET = "models/tiny/versions/1", "datasets/scenes/versions/1"


def put_model(store: Store, folder: Path, architecture: str = "mllm") -> None:
    tokenizer = tiny_tokenizer()
    save_model(tiny_model(tokenizer), folder)
    tokenizer.save(folder)
    for path in folder.iterdir():
        store.upload(path, f"{MODEL}/{path.name}")
    digest = manifests.publish(store, MODEL).digest
    documents.create(store, ModelVersion(name=MODEL, architecture=architecture, digest=digest))
    documents.create(store, Model(name="models/tiny", aliases={"champion": MODEL}, latest_version=MODEL))


@pytest.fixture
def filled(store: Store, tmp_path: Path) -> Store:
    """A store with a model version and a dataset version of scenes."""
    put_model(store, tmp_path / "model")
    settings = ScenesConfig(num_scenes=12, num_pairs=4, num_texts=0, image_size=16, questions_per_scene=4)
    samples = list(generate_samples(settings))
    names = [sample.id for sample in samples]
    held_out = {names[at] for at in (0, 3, 6, 12, 15)}
    dealt = [dataclasses.replace(s, split="test" if s.id in held_out else "train") for s in samples]
    assert write_version(store, "datasets/scenes", dealt).name == DATASET
    return store


def start(store: Store, *benchmarks: BenchmarkSpec, name: str = "evaluations/e1") -> JobContext:
    """A running evaluation, as the executor would start it."""
    checked = job.checked_evaluation(
        store, Evaluation(model_version="models/tiny/versions/champion", benchmarks=benchmarks, seed=5)
    )
    checked.name = name
    checked.job.state = JobStatus.RUNNING
    documents.create(store, checked)
    return JobContext(store, name, Path(store.url.removeprefix("file://")).parent / "cache")


def spec(benchmark: str, **fields: str | int) -> BenchmarkSpec:
    return BenchmarkSpec(benchmark=benchmark, dataset_version=DATASET, **fields)  # pyright: ignore[reportArgumentType]


def test_scores_predictions_and_lineage_are_published(filled: Store) -> None:
    ctx = start(filled, spec("scene-questions"), spec("scene-differences"))
    job.run(ctx)
    ctx.flush()

    done = documents.get(filled, Evaluation, "evaluations/e1")
    assert done.model_version == MODEL
    assert done.model_digest == documents.get(filled, ModelVersion, MODEL).digest
    assert done.digest == manifests.read(filled, done.name).digest
    assert dict(done.benchmark_versions) == {"scene-questions": "1", "scene-differences": "1"}
    assert done.code_revision
    assert {score.benchmark for score in done.scores} == {"scene-questions", "scene-differences"}
    assert all(score.low <= score.value <= score.high for score in done.scores)
    assert fsck(filled) == []

    stored = json.loads(filled.get("evaluations/e1/scores.json"))
    assert [entry["benchmark"] for entry in stored] == [score.benchmark for score in done.scores]
    predictions = job.read_predictions(filled, "evaluations/e1")
    exact = [p.score for p in predictions if p.group == "difference"]
    assert sum(exact) / len(exact) == next(s.value for s in done.scores if s.group == "difference")
    events = [event.kind for event in EventLog(filled, "evaluations/e1").read(0)]
    assert events.count("score") == len(done.scores)
    assert "data:image/png;base64," in filled.get("evaluations/e1/report.html").decode()


def test_the_same_evaluation_gives_the_same_bytes(filled: Store) -> None:
    for name in ("evaluations/e1", "evaluations/e2"):
        job.run(start(filled, spec("scene-questions"), name=name))
    for path in (outputs.PREDICTIONS, outputs.SCORES):
        assert filled.get(f"evaluations/e1/{path}") == filled.get(f"evaluations/e2/{path}")


def test_an_attempt_that_died_after_its_manifest_is_finished(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = start(filled, spec("scene-questions"))
    with monkeypatch.context() as patch:
        patch.setattr(ctx, "update", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            job.run(ctx)
    assert not documents.get(filled, Evaluation, "evaluations/e1").scores
    manifest = manifests.read(filled, "evaluations/e1")
    job.run(ctx)
    done = documents.get(filled, Evaluation, "evaluations/e1")
    assert done.digest == manifest.digest
    assert done.scores
    assert fsck(filled) == []


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_cancelled_evaluation_publishes_nothing(filled: Store) -> None:
    ctx = start(filled, spec("scene-questions"))
    ctx.stop()
    with pytest.raises(CancelledError):
        job.run(ctx)
    assert not filled.exists("evaluations/e1/manifest.json")
    assert job.read_predictions(filled, "evaluations/e1") == []


@pytest.mark.parametrize(
    ("benchmark", "error", "message"),
    [
        (spec("scene-question"), InvalidArgumentError, r"benchmarks\[0\]\.benchmark: .*did you mean 'scene-questions'"),
        (spec("scene-questions", split="tset"), InvalidArgumentError, r"benchmarks\[0\]\.split: .*splits: test, train"),
        (spec("image-text-retrieval"), FailedPreconditionError, "scores models of kind dual-encoder"),
        (
            BenchmarkSpec(benchmark="scene-questions", dataset_version="datasets/none/versions/1"),
            NotFoundError,
            r"benchmarks\[0\]\.dataset_version: no datasets/none/versions/1",
        ),
    ],
)
def test_what_cannot_run_is_refused_at_once(
    filled: Store, benchmark: BenchmarkSpec, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        job.checked_evaluation(filled, Evaluation(model_version=MODEL, benchmarks=[benchmark]))


def test_a_missing_model_is_named(filled: Store) -> None:
    with pytest.raises(NotFoundError, match="models/tiny/versions/9"):
        job.checked_evaluation(
            filled, Evaluation(model_version="models/tiny/versions/9", benchmarks=[spec("scene-questions")])
        )


def test_predictions_survive_the_file() -> None:
    made = [
        Prediction(benchmark="b", sample_id="s", question="q?", prediction="ä\U0001f9ff", references=["x", "y"]),
        Prediction(score=0.25, text_only_prediction="no"),
    ]
    assert outputs.predictions_from_parquet(outputs.predictions_to_parquet(made)) == made
    assert outputs.predictions_from_parquet(outputs.predictions_to_parquet([])) == []
