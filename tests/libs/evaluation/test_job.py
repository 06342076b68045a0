"""The evaluation job over a real store, a real dataset version and a tiny real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rebus.errors import CancelledError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from rebus.evaluation import job, outputs
from rebus.jobs.events import EventLog
from rebus.store import Store, documents, manifests
from rebus.store.maintenance import fsck
from rebus.v1.evaluation_pb2 import BenchmarkSpec, Evaluation, Prediction
from rebus.v1.model_pb2 import ModelVersion
from tests.parsed_page import Parsed
from tests.stored_evaluation import MODEL, fill, spec, start


@pytest.fixture
def filled(store: Store, tmp_path: Path) -> Store:
    """A store with a model version and a dataset version of scenes."""
    fill(store, tmp_path / "model")
    return store


def test_scores_predictions_and_lineage_are_published(filled: Store) -> None:
    benchmarks = ("scene-questions", "scene-differences", "scene-captions")
    ctx = start(filled, *(spec(name) for name in benchmarks))
    job.run(ctx)
    ctx.flush()

    done = documents.get(filled, Evaluation, "evaluations/e1")
    assert done.model_version == MODEL
    assert done.model_digest == documents.get(filled, ModelVersion, MODEL).digest
    assert done.digest == manifests.read(filled, done.name).digest
    assert dict(done.benchmark_versions) == dict.fromkeys(benchmarks, "1")
    assert done.code_revision
    assert {score.benchmark for score in done.scores} == set(benchmarks)
    assert all(score.low <= score.value <= score.high for score in done.scores)
    assert fsck(filled) == []

    stored = json.loads(filled.get("evaluations/e1/scores.json"))
    assert [entry["benchmark"] for entry in stored] == [score.benchmark for score in done.scores]
    predictions = job.read_predictions(filled, "evaluations/e1")
    exact = [p.score for p in predictions if p.group == "difference"]
    assert sum(exact) / len(exact) == next(s.value for s in done.scores if s.group == "difference")
    events = [event.kind for event in EventLog(filled, "evaluations/e1").read(0)]
    assert events.count("score") == len(done.scores)
    page = Parsed(filled.get("evaluations/e1/report.html").decode())
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.find("img"))
    assert all(f"{score.value:.3f}" in page.text for score in done.scores)


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
