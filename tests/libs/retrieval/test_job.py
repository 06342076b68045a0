"""The index job: from a model version and a dataset version to an index that finds each picture by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from rebus.errors import CancelledError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from rebus.jobs import status
from rebus.jobs.context import JobContext
from rebus.jobs.events import EventLog
from rebus.models import feature_cache
from rebus.retrieval import Embedder
from rebus.retrieval.job import IndexCache, checked_index, run
from rebus.store import Store, manifests
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.retrieval_pb2 import Index
from tests.libs.retrieval import tiny


@pytest.fixture
def pictures(store: Store, tmp_path: Path) -> DatasetVersion:
    """Eight pictures and a model, published."""
    tiny.publish_model(store, tmp_path / "model")
    return tiny.publish_pictures(store)


def queued(store: Store, tmp_path: Path, dataset: DatasetVersion, **fields: str) -> JobContext:
    wanted = Index(model_version="models/tiny/versions/champion", dataset_version=dataset.name, **fields)
    document, _ = status.create(store, checked_index(store, wanted))
    return JobContext(store, document.name, tmp_path / "cache")


def finish(ctx: JobContext) -> None:
    """What the worker does around a job that ends well."""
    run(ctx)
    ctx.flush()
    status.transition(ctx.store, ctx.name, JobStatus.RUNNING)
    status.transition(ctx.store, ctx.name, JobStatus.SUCCEEDED)


@pytest.mark.parametrize("algorithm", ["flat", "hnsw"])
def test_every_picture_finds_itself(store: Store, tmp_path: Path, pictures: DatasetVersion, algorithm: str) -> None:
    ctx = queued(store, tmp_path, pictures, split="test", algorithm=algorithm)
    finish(ctx)
    document, index = IndexCache(store, tmp_path / "cache").get(ctx.name)
    with manifests.fetch(store, tiny.MODEL, tmp_path / "cache") as folder:
        embedder = Embedder.load(folder)

    held_out = [1, 3, 5, 7]
    found = index.search(embedder.embed_images([tiny.picture(seed) for seed in held_out]), 1)
    assert [hits[0].sample_id for hits in found] == [f"picture-{seed}" for seed in held_out]
    assert [hits[0].row for hits in found] == [
        1,
        4,
        6,
        8,
    ]  # row 2, a sound, is no candidate but keeps its number
    assert all(hits[0].score == pytest.approx(1.0, abs=1e-4) for hits in found)
    assert (document.num_vectors, document.dimension) == (4, 16)
    assert document.digest == manifests.read(store, ctx.name).digest
    assert document.model_version == tiny.MODEL
    assert not manifests.verify(store, ctx.name)
    kinds = [event.kind for event in EventLog(store, ctx.name).read()]
    assert "progress" in kinds
    assert "metrics" in kinds


def test_a_job_that_died_after_publishing_only_fills_its_document(
    store: Store, tmp_path: Path, pictures: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = queued(store, tmp_path, pictures)
    monkeypatch.setattr(ctx, "update", lambda *_: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        run(ctx)
    digest = manifests.read(store, ctx.name).digest

    monkeypatch.setattr(feature_cache, "cached_features", lambda *args, **kwargs: pytest.fail("embedded again"))
    again = JobContext(store, ctx.name, tmp_path / "cache")
    run(again)
    assert again.document(Index).digest == digest
    assert again.document(Index).num_vectors == 8


def test_another_model_over_the_same_encoder_reuses_the_features(
    store: Store, tmp_path: Path, pictures: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(queued(store, tmp_path, pictures))
    monkeypatch.setattr(feature_cache, "encode_images", lambda *args, **kwargs: pytest.fail("encoded again"))
    ctx = queued(store, tmp_path, pictures, algorithm="hnsw")
    run(ctx)
    assert ctx.document(Index).num_vectors == 8


def test_a_cancelled_job_publishes_nothing(store: Store, tmp_path: Path, pictures: DatasetVersion) -> None:
    ctx = queued(store, tmp_path, pictures)
    ctx.stop()
    with pytest.raises(CancelledError):
        run(ctx)
    with pytest.raises(NotFoundError):
        manifests.read(store, ctx.name)


def test_an_unfinished_index_cannot_be_searched(store: Store, tmp_path: Path, pictures: DatasetVersion) -> None:
    ctx = queued(store, tmp_path, pictures)
    with pytest.raises(FailedPreconditionError, match="is QUEUED"):
        IndexCache(store, tmp_path / "cache").get(ctx.name)
    with pytest.raises(NotFoundError):
        IndexCache(store, tmp_path / "cache").get("indexes/none")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"algorithm": "flatt"}, InvalidArgumentError, r"index\.algorithm: .* did you mean 'flat'"),
        ({"split": "validation"}, InvalidArgumentError, r"index\.split: .* splits: test, train"),
        ({"model_version": "models/none/versions/1"}, NotFoundError, "models/none"),
        ({"dataset_version": "datasets/none/versions/1"}, NotFoundError, "datasets/none"),
    ],
)
def test_bad_requests_name_their_field(
    store: Store, pictures: DatasetVersion, changes: dict[str, str], error: type[Exception], message: str
) -> None:
    wanted = Index(**{"model_version": tiny.MODEL, "dataset_version": pictures.name, **changes})
    with pytest.raises(error, match=message):
        checked_index(store, wanted)


def test_a_model_that_does_not_embed_is_refused(store: Store, tmp_path: Path) -> None:
    tiny.publish_model(store, tmp_path / "model", architecture="mllm")
    wanted = Index(model_version=tiny.MODEL, dataset_version=tiny.publish_pictures(store).name)
    with pytest.raises(FailedPreconditionError, match="is a mllm"):
        checked_index(store, wanted)
