"""An evaluation beside what its model was trained on: reported, scored without it, refused, or said to be unknown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from rebus.config import digest
from rebus.data import contamination_gate
from rebus.data.dataset import open_version, write_version
from rebus.errors import FailedPreconditionError
from rebus.evaluation import job, outputs
from rebus.evaluation.scoring import Measured, gain, score
from rebus.store import Store, documents, lineage
from rebus.store.maintenance import fsck
from rebus.v1.contamination_pb2 import Contamination, ContaminationMatch, ContaminationPolicy
from rebus.v1.evaluation_pb2 import BenchmarkSpec, Evaluation
from rebus.v1.model_pb2 import ModelVersion
from rebus.v1.training_pb2 import MixtureShare, Run
from tests.parsed_page import Parsed
from tests.stored_evaluation import DATASET, MODEL, fill, spec, start

# Nearly whole copies: the scenes of a test repeat the templates of questions.
STRICT = ContaminationPolicy(match=ContaminationMatch(by=["TEXT"], min_overlap=0.95))


@pytest.fixture
def filled(store: Store, tmp_path: Path) -> Store:
    """A model trained on the train split of the scenes, from a parent that saw some of the test split elsewhere."""
    fill(store, tmp_path / "model", run="runs/child")
    held_out = list(open_version(store, DATASET).scan("test"))
    seen = [dataclasses.replace(sample, id=f"copy-{sample.id}", split="train") for sample in held_out[:2]]
    write_version(store, "datasets/web", seen)
    trained(store, "runs/child", "scenes", DATASET)
    trained(store, "runs/parent", "web", "datasets/web/versions/1")
    parent = ModelVersion(name="models/parent/versions/1", run="runs/parent", mixture=share(store, "web"))
    documents.create(store, parent)

    def descend(document: ModelVersion) -> None:
        document.mixture.extend(share(store, "scenes"))
        document.parents.append(parent.name)

    documents.update(store, ModelVersion, MODEL, descend)
    return store


def trained(store: Store, name: str, dataset: str, version: str) -> None:
    recipe = {"data": {dataset: {"dataset": dataset, "split": "train"}}, "task": {"name": "long-gone"}}
    run = Run(name=name, recipe=yaml.safe_dump(recipe), recipe_digest=digest(recipe), datasets={dataset: version})
    documents.create(store, run)


def share(store: Store, dataset: str) -> list[MixtureShare]:
    version = open_version(store, f"datasets/{dataset}/versions/1").version
    return [MixtureShare(source=dataset, dataset_version=version.name, dataset_digest=version.digest)]


def evaluated(store: Store, policy: ContaminationPolicy | None, name: str = "evaluations/e1") -> Evaluation:
    context = start(store, spec("scene-questions"), spec("scene-captions"), name=name, policy=policy)
    job.run(context)
    return documents.get(store, Evaluation, name)


def test_items_that_a_parent_saw_are_reported_and_left_out_of_the_clean_scores(filled: Store) -> None:
    done = evaluated(filled, STRICT)

    (report,) = done.contamination  # both benchmarks take their items from the same rows
    held_out = sorted(sample.id for sample in open_version(filled, DATASET).scan("test"))
    copied = [row.id.removeprefix("copy-") for row in open_version(filled, "datasets/web/versions/1").scan()]
    assert (report.benchmark_version, report.split, report.num_items) == (DATASET, "test", len(held_out))
    assert [seen.item for seen in report.first_seen] == sorted(copied)
    assert report.first_seen[0].sample == f"copy-{sorted(copied)[0]}"
    assert {rows.dataset_version: rows.num_seen for rows in report.training} == {
        DATASET: 0,
        "datasets/web/versions/1": 2,
    }
    assert list(report.unknown) == []

    predictions = job.read_predictions(filled, done.name)
    (whole,) = (s for s in done.scores if s.benchmark == "scene-captions" and s.metric == "cider_d")
    kept = [p.score for p in predictions if p.benchmark == "scene-captions" and p.sample_id not in copied]
    assert whole.clean.num_items == len(kept) < whole.num_items
    assert whole.clean.value == pytest.approx(np.mean(kept))
    assert all(score.HasField("clean") for score in done.scores)

    told = f"40.0% of {len(held_out)} items seen (2), by text"
    attributes = lineage.walk(filled, done.name).nodes[0].attributes
    assert attributes[f"contamination/{DATASET} test"] == told
    page = Parsed(filled.get(f"{done.name}/{outputs.REPORT}").decode())
    assert told in page.text
    assert "not seen in training" in page.text
    assert fsck(filled) == []


def test_without_items_seen_the_scores_are_the_same_bytes(filled: Store) -> None:
    skipped = evaluated(filled, ContaminationPolicy(skip=True), "evaluations/skipped")
    documents.update(filled, ModelVersion, MODEL, lambda document: document.ClearField("parents"))
    clean = evaluated(filled, STRICT, "evaluations/clean")

    assert len(skipped.contamination) == 0
    assert clean.contamination[0].num_seen == 0
    scores = [filled.get(f"{done.name}/{outputs.SCORES}") for done in (skipped, clean)]
    assert scores[0] == scores[1]
    page = Parsed(filled.get(f"{skipped.name}/{outputs.REPORT}").decode())
    assert "not looked up" in page.text


def test_a_gate_fails_the_evaluation_before_it_scores(filled: Store) -> None:
    policy = ContaminationPolicy(max_share=0.3)
    policy.MergeFrom(STRICT)
    with pytest.raises(
        FailedPreconditionError, match=r"hold 40.0% of datasets/scenes/versions/1 \(test\), more than 30"
    ):
        evaluated(filled, policy)
    failed = documents.get(filled, Evaluation, "evaluations/e1")
    assert failed.contamination[0].max_share == 0.3
    assert len(failed.scores) == 0

    policy.max_share = 0.5
    assert evaluated(filled, policy, "evaluations/e2").contamination[0].num_seen == 2


def test_what_is_gone_is_unknown_and_stops_only_a_gated_evaluation(filled: Store) -> None:
    documents.delete(filled, "datasets/web")
    documents.delete(filled, "runs/child")

    done = evaluated(filled, STRICT)

    assert list(done.contamination[0].unknown) == [
        "no datasets/web/versions/1",
        f"the training data of {MODEL}: no runs/child",
    ]
    assert done.scores
    page = Parsed(filled.get(f"{done.name}/{outputs.REPORT}").decode())
    assert "unknown: no datasets/web/versions/1" in page.text
    with pytest.raises(FailedPreconditionError, match="is unknown: no datasets/web/versions/1"):
        evaluated(filled, ContaminationPolicy(max_share=1), "evaluations/e2")


def test_a_second_evaluation_looks_nothing_up_again(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluated(filled, STRICT)
    monkeypatch.setattr(contamination_gate, "held_items", None)
    assert evaluated(filled, STRICT, "evaluations/e2").contamination == first.contamination


def test_reports_of_an_attempt_that_died_come_from_what_it_published(filled: Store) -> None:
    first = evaluated(filled, STRICT)
    documents.update(filled, Evaluation, first.name, lambda document: document.ClearField("contamination"))
    job.run(start_again(filled, first.name))
    assert documents.get(filled, Evaluation, first.name).contamination == first.contamination


def start_again(store: Store, name: str) -> job.JobContext:
    return job.JobContext(store, name, Path(store.url.removeprefix("file://")).parent / "cache")


def test_retrieval_and_questions_cut_items_with_their_groups() -> None:
    """Worked by hand: items 1 and 3 were seen."""
    measured = Measured(
        values=np.array([1.0, 0.0, 0.0, 1.0]),
        text_only=np.array([1.0, 0.0, 1.0, 0.0]),
        clusters=["a", "a", "b", "c"],
        clean=np.array([True, False, True, False]),
    )
    whole = score("b", "mean", "m", measured, seed=0, groups=["x", "y", "x", "y"])
    assert (whole.value, whole.clean.value, whole.clean.num_items) == (0.5, 0.5, 2)
    assert gain("b", "mean", "m", measured, seed=0).clean.value == -0.5
    none = dataclasses.replace(measured, clean=np.zeros(4, bool))
    assert score("b", "", "m", none, seed=0).clean.num_items == 0
    assert not score("b", "", "m", dataclasses.replace(measured, clean=None), seed=0).HasField("clean")


def test_a_policy_is_kept_and_what_is_output_only_is_not(filled: Store) -> None:
    asked = Evaluation(
        model_version=MODEL, benchmarks=[BenchmarkSpec(benchmark="scene-questions", dataset_version=DATASET)]
    )
    asked.contamination_policy.max_share = 0.25
    asked.contamination.append(Contamination(num_seen=5))
    checked = job.checked_evaluation(filled, asked)
    assert checked.contamination_policy.max_share == 0.25
    assert len(checked.contamination) == 0
