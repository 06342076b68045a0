"""Model versions, aliases, lineage, fsck and gc over one small but whole history."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import torch
from safetensors.torch import save

from rebus.config import digest
from rebus.errors import AbortedError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from rebus.jobs.events import EventLog
from rebus.store import Store, documents, lineage, maintenance, manifests, model_versions
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import Curation, Dataset, DatasetVersion, Ingestion, Source
from rebus.v1.evaluation_pb2 import BenchmarkSpec, Evaluation
from rebus.v1.model_pb2 import Lineage, Model, ModelVersion
from rebus.v1.training_pb2 import MixtureShare, Run

RECIPE = {"name": "tiny"}
SUCCEEDED = JobStatus(state=JobStatus.SUCCEEDED)


@pytest.fixture
def history(store: Store) -> Store:
    """ingestion → dataset version 1 → curation → version 2 → run → model version → evaluation."""
    documents.create(store, Dataset(name="datasets/d", latest_version="datasets/d/versions/2"))
    sources = [Source(reader="emoji")]
    documents.create(store, Ingestion(name="ingestions/i", dataset="datasets/d", sources=sources, job=SUCCEEDED))
    first = _dataset_version(store, 1, producer="ingestions/i")
    documents.create(
        store, Curation(name="curations/c", dataset_version=first.name, dropped={"dedup": 1}, job=SUCCEEDED)
    )
    second = _dataset_version(store, 2, producer="curations/c", parent=first.name)
    share = MixtureShare(source="captions", dataset_version=second.name, dataset_digest=second.digest, num_samples=9)
    checkpoint = "runs/r/checkpoints/step-5"
    store.put(f"{checkpoint}/model/model.safetensors", save({"a": torch.zeros(2, 3), "b": torch.zeros(4)}))
    store.put(
        f"{checkpoint}/model/config.json", json.dumps({"architecture": "mllm", "preprocess_digest": "p"}).encode()
    )
    store.put(f"{checkpoint}/state.json", b"{}")
    manifests.publish(store, checkpoint)
    run = Run(name="runs/r", recipe=json.dumps(RECIPE), recipe_digest=digest(RECIPE), code_revision="abc", seed=1)
    run.datasets["d"] = second.name
    run.mixture.append(share)
    run.checkpoint = checkpoint
    run.job.CopyFrom(SUCCEEDED)
    documents.create(store, run)
    EventLog(store, "runs/r").append([("state", {"state": "SUCCEEDED"})])
    version = model_versions.register(store, "models/m", "runs/r")
    evaluation = Evaluation(name="evaluations/e", model_version=version.name, code_revision="abc", job=SUCCEEDED)
    evaluation.benchmarks.append(BenchmarkSpec(benchmark="b", dataset_version=second.name))
    evaluation.model_digest = version.digest
    store.put("evaluations/e/scores.json", b"{}")
    evaluation.digest = manifests.publish(store, "evaluations/e", ["scores.json"]).digest
    documents.create(store, evaluation)
    return store


def _dataset_version(store: Store, number: int, *, producer: str, parent: str = "") -> DatasetVersion:
    store.put(f"datasets/d/data.lance/data/{number}.lance", b"rows" * number)
    name = f"datasets/d/versions/{number}"
    manifest = manifests.publish(store, name, [f"data.lance/data/{number}.lance"], base="datasets/d")
    version = DatasetVersion(name=name, producer=producer, parent=parent, digest=manifest.digest, num_samples=number)
    return documents.create(store, version)


def test_a_version_describes_what_was_trained(history: Store) -> None:
    version = model_versions.get(history, "models/m/versions/1")
    assert (version.architecture, version.run, version.num_parameters) == ("mllm", "runs/r", 10)
    assert (version.recipe_digest, version.code_revision, version.preprocess_digest) == (digest(RECIPE), "abc", "p")
    assert version.mixture[0].num_samples == 9
    assert not history.exists("models/m/versions/1/state.json")
    assert documents.get(history, Model, "models/m").latest_version == version.name


def test_registering_a_run_again_returns_its_version(history: Store) -> None:
    assert model_versions.register(history, "models/m", "runs/r").name == "models/m/versions/1"
    assert model_versions.register(history, "models/other", "runs/r").name == "models/other/versions/1"


def test_a_run_that_did_not_succeed_is_refused(history: Store) -> None:
    documents.create(history, Run(name="runs/f", job=JobStatus(state=JobStatus.FAILED)))
    with pytest.raises(FailedPreconditionError, match="runs/f is FAILED"):
        model_versions.register(history, "models/m", "runs/f")
    with pytest.raises(NotFoundError, match="no runs/none"):
        model_versions.register(history, "models/m", "runs/none")


def test_a_damaged_checkpoint_is_refused(history: Store) -> None:
    history.put("runs/r/checkpoints/step-5/state.json", b"[]")
    with pytest.raises(FailedPreconditionError, match="state.json: stored bytes were altered"):
        model_versions.register(history, "models/new", "runs/r")


def test_aliases_move_by_compare_and_swap(history: Store) -> None:
    model_versions.set_alias(history, "models/m", "champion", "models/m/versions/1", expected="")
    assert model_versions.get(history, "models/m/versions/champion").name == "models/m/versions/1"
    with pytest.raises(AbortedError, match="champion points at models/m/versions/1, not at nothing"):
        model_versions.set_alias(history, "models/m", "champion", "models/m/versions/1", expected="")
    with pytest.raises(NotFoundError, match="no models/m/versions/7"):
        model_versions.set_alias(history, "models/m", "champion", "models/m/versions/7")
    with pytest.raises(InvalidArgumentError, match="model_version"):
        model_versions.set_alias(history, "models/m", "champion", "models/x/versions/1")
    with pytest.raises(NotFoundError, match="models/m has no alias 'best'; aliases: champion"):
        model_versions.get(history, "models/m/versions/best")


def test_concurrent_registrations_take_different_numbers(history: Store) -> None:
    for index in range(6):
        run = documents.get(history, Run, "runs/r")
        run.name = f"runs/r{index}"
        documents.create(history, run)
    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(lambda i: model_versions.register(history, "models/n", f"runs/r{i}"), range(6)))
    assert sorted(version.name for version in versions) == [f"models/n/versions/{i}" for i in range(1, 7)]
    assert documents.get(history, Model, "models/n").latest_version == "models/n/versions/6"


def _edges(graph: Lineage) -> set[tuple[str, str, str]]:
    return {(getattr(edge, "from"), edge.relation, edge.to) for edge in graph.edges}


def test_lineage_walks_back_to_the_sources(history: Store) -> None:
    graph = lineage.walk(history, "evaluations/e")
    recipe = f"recipe:{digest(RECIPE)}"
    assert _edges(graph) == {
        ("evaluations/e", "evaluated", "models/m/versions/1"),
        ("evaluations/e", "used_code", "code:abc"),
        ("evaluations/e", "evaluated_on", "datasets/d/versions/2"),
        ("models/m/versions/1", "trained_by", "runs/r"),
        ("runs/r", "used_recipe", recipe),
        ("runs/r", "used_code", "code:abc"),
        ("runs/r", "consumed", "datasets/d/versions/2"),
        ("datasets/d/versions/2", "produced_by", "curations/c"),
        ("datasets/d/versions/2", "curated_from", "datasets/d/versions/1"),
        ("curations/c", "read", "datasets/d/versions/1"),
        ("datasets/d/versions/1", "produced_by", "ingestions/i"),
        ("ingestions/i", "read", "source:emoji"),
    }
    names = [node.name for node in graph.nodes]
    assert names[0] == "evaluations/e"
    assert len(names) == len(set(names)) == 10
    run = next(node for node in graph.nodes if node.kind == "run")
    assert run.attributes["mixture/captions"] == "9 samples, 0 tokens, 0 images"


def test_lineage_names_a_missing_link(history: Store) -> None:
    documents.delete(history, "runs/r")
    with pytest.raises(NotFoundError, match="no runs/r"):
        lineage.walk(history, "evaluations/e")


def test_fsck_finds_nothing_in_a_sound_store(history: Store) -> None:
    assert maintenance.fsck(history) == []


def test_fsck_names_any_altered_object(history: Store) -> None:
    """One byte of every stored object in turn: each is found, by name."""
    for info in list(history.list()):
        original = history.get(info.path)
        altered = bytearray(original)
        altered[len(altered) // 2] ^= 1
        history.put(info.path, bytes(altered))
        assert info.path in {problem.path for problem in maintenance.fsck(history)}, info.path
        history.put(info.path, original)
    assert maintenance.fsck(history) == []


def test_fsck_finds_what_contradicts_what_refers_to_it(history: Store) -> None:
    model_versions.set_alias(history, "models/m", "champion", "models/m/versions/1")
    documents.delete(history, "models/m/versions/1")
    problems = {(problem.path, problem.description) for problem in maintenance.fsck(history)}
    assert problems == {
        ("models/m", "alias champion dangles: no models/m/versions/1"),
        ("models/m", "its latest version dangles: no models/m/versions/1"),
        ("evaluations/e", "no models/m/versions/1"),
    }

    documents.update(history, Run, "runs/r", lambda run: setattr(run, "recipe", '{"name": "other"}'))
    problems = {problem.path: problem.description for problem in maintenance.fsck(history)}
    assert problems["runs/r"] == "the recipe does not match its digest"


def test_gc_removes_leftovers_and_nothing_else(history: Store) -> None:
    before = {info.path for info in history.list()}
    leftovers = {"datasets/d/data.lance/data/orphan.lance", "runs/r/checkpoints/step-9/model/model.safetensors"}
    for path in leftovers:
        history.put(path, b"half")
    later = datetime.now(UTC) + timedelta(hours=25)
    assert maintenance.garbage(history) == []  # within the grace period
    found = maintenance.garbage(history, now=later)
    assert {info.path for info in found} == leftovers
    assert maintenance.collect(history, found) == 8
    assert {info.path for info in history.list()} == before


def test_gc_waits_for_active_jobs(history: Store) -> None:
    run = Run(name="runs/active", job=JobStatus(state=JobStatus.RUNNING))
    run.job.create_time.GetCurrentTime()
    documents.create(history, run)
    history.put("runs/active/checkpoints/step-1/model/model.safetensors", b"half")
    assert maintenance.garbage(history, now=datetime.now(UTC) + timedelta(days=3)) == []


def test_versions_of_a_model_are_listed(history: Store) -> None:
    assert [v.name for v in documents.list_all(history, ModelVersion, parent="models/m")] == ["models/m/versions/1"]
