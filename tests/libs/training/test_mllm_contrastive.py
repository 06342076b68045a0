"""A multimodal language model trained to embed: saved, loaded by the embedder, an index built with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rebus import registry
from rebus.data.stream import StreamState
from rebus.errors import DataLossError, InvalidArgumentError
from rebus.jobs import status
from rebus.jobs.context import JobContext
from rebus.models import load_model
from rebus.models.mllm_embedder import MllmEmbedder
from rebus.retrieval import Embedder, embedder
from rebus.retrieval.job import IndexCache, checked_index
from rebus.retrieval.job import run as build_index
from rebus.store import Store, manifests, model_versions
from rebus.training.loop import Trained, deterministic
from rebus.training.recipe import TrainingRecipe
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.retrieval_pb2 import Index
from tests.libs.retrieval import tiny
from tests.libs.training import scenes_run
from tests.libs.training.scenes_run import Recorder, context, execute

_STAGE: dict[str, Any] = {
    "name": "pairs",
    "steps": 11,
    "batch_size": 4,
    "mixture": {"captions": 1},
    "objectives": [{"name": "contrastive"}],
    "optimizer": {"name": "adamw", "lr": 3e-3},
}


def recipe(*, stage: dict[str, Any] | None = None, **task: Any) -> TrainingRecipe:
    return scenes_run.recipe(task={"name": "mllm-contrastive", **task}, stages=[{**_STAGE, **(stage or {})}])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Recorder]:
    recorder = Recorder(tmp_path_factory.mktemp("whole"))
    return execute(recipe(matryoshka_widths=[4, 8]), recorder), recorder


@pytest.fixture(scope="module")
def folder(whole: tuple[Trained, Recorder]) -> Path:
    return whole[1].checkpoints[11] / "model"


def test_pairs_are_told_apart_better_and_a_resumed_run_is_the_same(
    whole: tuple[Trained, Recorder], tmp_path: Path
) -> None:
    trained, recorder = whole
    assert sum(recorder.losses[-3:]) < sum(recorder.losses[:3])
    assert trained.state.consumed["captions"].images == 44
    again = Recorder(tmp_path)
    resumed = execute(recipe(matryoshka_widths=[4, 8]), again, resume_from=recorder.checkpoints[8])
    assert again.losses == recorder.losses[8:]
    assert all(torch.equal(v, trained.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())


def test_the_embedder_gives_what_was_trained_whatever_the_chunks(
    whole: tuple[Trained, Recorder], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Embedder.load(folder)
    texts, images = ["a red cube", "", "two small spheres and a cube"], [tiny.picture(at) for at in range(3)]
    one_by_one = np.concatenate([loaded.embed_texts([text]) for text in texts])
    alone = np.concatenate([loaded.embed_images([image]) for image in images])
    monkeypatch.setattr(embedder, "_TEXTS_AT_A_TIME", 2)
    monkeypatch.setattr(embedder, "_IMAGES_AT_A_TIME", 2)
    np.testing.assert_allclose(loaded.embed_texts(texts), one_by_one, atol=1e-5)
    np.testing.assert_allclose(loaded.embed_images(images), alone, atol=1e-5)
    assert np.linalg.norm(np.concatenate([one_by_one, alone]), axis=1) == pytest.approx(1.0, abs=1e-5)
    assert abs(one_by_one[0] - one_by_one[2]).max() > 1e-3
    assert abs(alone[0] - alone[1]).max() > 1e-4
    assert loaded.embed_texts([]).shape == (0, loaded.dimension)

    model = whole[0].model
    assert isinstance(model, MllmEmbedder)
    assert loaded.dimension == model.width == 16
    row = loaded._rows.text(texts[0])  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        embeds = model.mllm.embed(torch.from_numpy(row.input_ids)[None])
        hidden = model.mllm.decode(embeds, torch.from_numpy(row.positions)[None])[0, -1]
    np.testing.assert_allclose(one_by_one[0], torch.nn.functional.normalize(hidden, dim=0).numpy(), atol=1e-5)


def test_the_card_names_the_head_and_what_embeds(folder: Path) -> None:
    card = (folder / "model.md").read_text()
    assert "# mllm-embedder: conv-vit, mlp, llama, last-token" in card
    assert "| beginnings that embed too | `4, 8` |" in card


def test_bad_inputs_are_named(folder: Path, tmp_path: Path) -> None:
    loaded = Embedder.load(folder)
    with pytest.raises(InvalidArgumentError, match=r"texts\[1\].* more than max_length_tokens=1024"):
        loaded.embed_texts(["short", "long " * 2000])
    with pytest.raises(InvalidArgumentError, match=r"images\[1\]"):
        loaded.embed_images([tiny.picture(0), b"GIF89a"])
    other = Recorder(tmp_path)
    execute(recipe(stage={"steps": 1}, tokenizer={"vocab_size": 290}), other)
    (other.checkpoints[1] / "model" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(DataLossError, match="the tokenizer has 300 tokens"):
        Embedder.load(other.checkpoints[1] / "model")


@pytest.mark.parametrize("head", [{"name": "mean"}, {"name": "latent-attention", "num_latents": 4, "num_heads": 2}])
def test_any_head_of_one_vector_is_trained_and_loaded(head: dict[str, Any], tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    stage = {"steps": 1, "trainable": ["connector", "head", "calibration"]}
    execute(recipe(stage=stage, head=head, image_instruction="", text_instruction=""), recorder)
    folder = recorder.checkpoints[1] / "model"
    model = load_model(folder)
    assert isinstance(model, MllmEmbedder)
    assert model.config.head["name"] == head["name"]
    assert Embedder.load(folder).embed_texts(["a red cube"]).shape == (1, 16)


def gradients(chunk_rows: int, folder: Path) -> dict[str, torch.Tensor]:
    """Of the first step, in float64; its rows pass the model in chunks."""
    plan = recipe(chunk_rows=chunk_rows)
    task = registry.build("task", plan.task)
    with deterministic(1):
        model = task.prepare(context(plan, folder)).eval().double()
        batch = next(task.batches(plan.stages[0], StreamState(), lambda step: {}))
        assert len(batch.data.chunks) == (-(-8 // chunk_rows) if chunk_rows else 1)
        chunks = [(rows, pixels.double()) for rows, pixels in batch.data.chunks]
        batch = dataclasses.replace(batch, data=dataclasses.replace(batch.data, chunks=chunks))
        task.loss(model, batch, plan.stages[0]).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_the_whole_batch_whatever_the_chunks(tmp_path: Path) -> None:
    whole = gradients(0, tmp_path)
    assert {name.split(".")[0] for name in whole} == {"mllm", "calibration"}
    for chunk_rows in (3, 4):
        found = gradients(chunk_rows, tmp_path)
        assert found.keys() == whole.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, whole[name], msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    ("task", "stage", "message"),
    [
        ({"head": {"name": "multi-vector"}}, {}, "'multi-vector' gives every token a vector"),
        ({"matryoshka_widths": [16]}, {}, r"matryoshka_widths: \[16\] are not within 1..15"),
        ({"chunk_rows": 3}, {}, "recipe.task.chunk_rows: the encoder learns batch statistics"),
        ({"media": {"splitter": {"name": "aspect"}}}, {}, "an embedder's images are one square each"),
        ({"preprocess": {"resize": "longest"}}, {}, "an embedder's images are one square each"),
        ({}, {"pack": {"max_tokens": 2048}}, "recipe.stages.pairs.pack"),
        ({}, {"mixer": {"name": "odm"}}, "recipe.stages.pairs.mixer.name"),
        ({}, {"objectives": [{"name": "language-modeling"}]}, "is not a loss of pairs"),
    ],
)
def test_what_cannot_be_trained_is_named(
    task: dict[str, Any], stage: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        execute(recipe(stage=stage, **task), Recorder(tmp_path))


def test_an_index_is_built_with_it_and_searched(store: Store, folder: Path, tmp_path: Path) -> None:
    version = model_versions.import_folder(store, "models/mm", folder, imported_from="a test")
    pictures = tiny.publish_pictures(store)
    wanted = Index(model_version=version.name, dataset_version=pictures.name, split="test")
    document, _ = status.create(store, checked_index(store, wanted))
    ctx = JobContext(store, document.name, tmp_path / "cache")
    build_index(ctx)
    ctx.flush()
    status.transition(store, ctx.name, JobStatus.RUNNING)
    status.transition(store, ctx.name, JobStatus.SUCCEEDED)
    document, index = IndexCache(store, tmp_path / "cache").get(ctx.name)
    assert (document.num_vectors, document.dimension) == (4, 16)
    with manifests.fetch(store, version.name, tmp_path / "cache") as fetched:
        loaded = Embedder.load(fetched)
    found = index.search(loaded.embed_images([tiny.picture(seed) for seed in (1, 3, 5, 7)]), 1)
    assert [hits[0].sample_id for hits in found] == [f"picture-{seed}" for seed in (1, 3, 5, 7)]
    assert index.search(loaded.embed_texts(["name 3"]), 2)[0][0].sample_id.startswith("picture-")
