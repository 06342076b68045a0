"""The contrastive task: what is drawn, what counts, exact resume, and that it learns."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rebus import registry
from rebus.config import merge
from rebus.data.sample import Sample, Segment
from rebus.data.stream import StreamState
from rebus.errors import InvalidArgumentError
from rebus.retrieval import Embedder
from rebus.training.captions import _captions, counted, draw
from rebus.training.loop import Trained, train
from rebus.training.recipe import Stage, TrainingRecipe, load_recipe, recipe_from_mapping
from rebus.training.sources import SampleList
from rebus.training.task import Batch, TaskContext
from rebus.training.tasks.contrastive import ContrastiveTask
from tests.libs.training.scenes_run import Recorder, Stop

RECIPES = Path(__file__).resolve().parents[3] / "pipelines" / "recipes"
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 210), "white": (240, 240, 240)}
FRENCH = {"red": "rouge", "green": "vert", "blue": "bleu", "white": "blanc"}
SIDES = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class ThumbnailConfig:
    """Settings of the test's encoder."""

    image_size: int = 8


class Thumbnail(nn.Module):
    """An encoder without secrets: the picture itself, as 4 tokens of 48 pixels."""

    def __init__(self, config: ThumbnailConfig) -> None:
        super().__init__()
        self.image_size, self.width, self.grid = config.image_size, 48, (2, 2)
        self.gain = nn.Parameter(torch.zeros(1))

    def load_pretrained(self) -> None:
        """Its published weight is 1."""
        nn.init.ones_(self.gain)

    def pool(self, pixels: Tensor) -> Tensor:
        return self.gain * pixels.flatten(1)

    @property
    def pooled_width(self) -> int:
        return 3 * self.image_size**2


RECIPE: Mapping[str, Any] = {
    "name": "tiny",
    "num_threads": 1,
    "checkpoint": {"every_steps": 4},
    "task": {
        "name": "contrastive",
        "model": {
            "vision_encoder": {"name": "thumbnail"},
            "text_encoder": {"name": "ngram-bag", "width": 16, "num_buckets": 512},
            "width": 16,
        },
    },
    "data": {"pictures": {"dataset": "pictures"}},
    "stages": [
        {
            "name": "contrastive",
            "steps": 11,
            "batch_size": 8,
            "objectives": [{"name": "contrastive", "hardness": 1.0}, {"name": "sigmoid-contrastive", "weight": 0.1}],
            "optimizer": {"name": "adamw", "lr": 1e-2},
        }
    ],
}


@pytest.fixture(autouse=True)
def _thumbnail(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.get("encoder", "vit")  # loads the kind before it is added to
    component = registry.Component("encoder", "thumbnail", Thumbnail, ThumbnailConfig, ())
    monkeypatch.setitem(registry._COMPONENTS["encoder"], "thumbnail", component)


def recipe(**changes: Any) -> TrainingRecipe:
    return recipe_from_mapping(merge(RECIPE, changes))


def picture(color: str, side: str, shade: int) -> bytes:
    pixels = np.zeros((8, 8, 3), np.uint8)
    half = slice(0, 4) if side == "left" else slice(4, 8)
    pixels[:, half] = np.clip(np.array(COLORS[color]) + shade, 0, 255)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def samples() -> list[Sample]:
    """Each colour on each side in three shades, which are one family, named in two languages."""
    return [
        Sample(
            id=f"{color}-{side}-{shade}",
            family=f"{color}-{side}",
            segments=[
                Segment(type="image", media=0),
                Segment(text=f"{color} {side}", role="assistant", branch=1, task="caption"),
                Segment(text=f"{FRENCH[color]} {side}", role="assistant", branch=2, task="caption"),
            ],
            media=[picture(color, side, shade)],
            metadata={"languages": ["en", "fr"]},
        )
        for color in COLORS
        for side in SIDES
        for shade in (-20, 0, 10)
    ]


def context(plan: TrainingRecipe, cache_dir: Path, resume_from: Path | None = None, seed: int = 0) -> TaskContext:
    return TaskContext(
        recipe=plan,
        sources={"pictures": SampleList(samples())},
        versions={"pictures": "test"},
        resume_from=resume_from,
        cache_dir=cache_dir,
        seed=seed,
        progress=lambda message: None,
    )


def execute(plan: TrainingRecipe, recorder: Recorder, resume_from: Path | None = None) -> Trained:
    recorder.folder.mkdir(parents=True, exist_ok=True)
    task = registry.build("task", plan.task)
    return train(task, context(plan, recorder.folder, resume_from), recorder)


def prepared(plan: TrainingRecipe, cache_dir: Path, seed: int = 0) -> ContrastiveTask:
    task = registry.build("task", plan.task)
    task.prepare(context(plan, cache_dir, seed=seed))
    return task


def test_learns_to_find_pictures_by_their_names_in_both_languages(tmp_path: Path) -> None:
    plan = recipe(stages=[{**RECIPE["stages"][0], "steps": 100}], checkpoint={"every_steps": 1000})
    recorder = Recorder(tmp_path / "run")
    execute(plan, recorder)
    embedder = Embedder.load(recorder.checkpoints[100] / "model")
    names = [(color, side) for color in COLORS for side in SIDES]
    images = embedder.embed_images([picture(color, side, -5) for color, side in names])  # a shade never seen
    for words in (COLORS, FRENCH):
        word = {color: FRENCH[color] if words is FRENCH else color for color in COLORS}
        texts = embedder.embed_texts([f"{word[color]} {side}" for color, side in names])
        assert (texts @ images.T).argmax(1).tolist() == list(range(len(names)))


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    reference = Recorder(tmp_path / "whole")
    whole = execute(recipe(), reference).model.state_dict()
    first = Recorder(tmp_path / "first", stop_after=6)
    with pytest.raises(Stop):
        execute(recipe(), first)
    second = Recorder(tmp_path / "second")  # another cache folder: the features are computed anew
    resumed = execute(recipe(), second, resume_from=first.checkpoints[4]).model.state_dict()

    assert second.losses == reference.losses[4:]
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_the_image_encoder_keeps_its_published_weights(tmp_path: Path) -> None:
    model = execute(recipe(), Recorder(tmp_path / "run")).model
    assert model.state_dict()["vision_encoder.gain"].item() == 1.0


def no_rewards(step: int) -> Mapping[str, float]:
    raise AssertionError(f"nobody learns from step {step}")


def drawn(task: ContrastiveTask, stage: Stage, count: int = 5) -> list[Batch]:
    return list(islice(task.batches(stage, StreamState(), no_rewards), count))


def test_a_batch_depends_on_seed_stage_and_state_alone(tmp_path: Path) -> None:
    plan = recipe()
    stage = plan.stages[0]
    first, again = prepared(plan, tmp_path), prepared(plan, tmp_path)
    batches = drawn(first, stage)
    left = batches[3].data
    right = next(again.batches(stage, batches[2].stream, no_rewards)).data
    assert torch.equal(left.features, right.features)
    assert all(np.array_equal(a, b) for a, b in zip(left.tokens, right.tokens, strict=True))
    assert not torch.equal(left.features, drawn(prepared(plan, tmp_path, seed=1), stage)[3].data.features)
    assert not torch.equal(left.features, batches[4].data.features)


def test_an_epoch_visits_every_picture_once_and_is_accounted_for(tmp_path: Path) -> None:
    plan = recipe()
    task = prepared(plan, tmp_path)
    batches = drawn(task, plan.stages[0], 3)
    rows = torch.cat([batch.data.features for batch in batches])
    assert len(rows.unique(dim=0)) == len(samples()) == 24
    for batch in batches:
        taken = batch.consumed["pictures"]
        assert (taken.samples, taken.images, taken.tokens) == (8, 8, sum(map(len, batch.data.tokens)))


@pytest.mark.parametrize(
    ("change", "field"),
    [({"pack": {"max_tokens": 64}}, "pack"), ({"mixer": {"name": "odm"}}, "mixer.name")],
)
def test_what_pairs_cannot_do_is_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    stage = {**RECIPE["stages"][0], **change}
    with pytest.raises(InvalidArgumentError, match=rf"recipe.stages.contrastive.{field}"):
        execute(recipe(stages=[stage]), Recorder(tmp_path))


def test_two_of_a_family_are_neither_alike_nor_unlike() -> None:
    assert counted(["a", "b", "a"]).tolist() == [[True, True, False], [True, True, True], [False, True, True]]


def test_captions_are_drawn_by_the_weight_of_their_language(tmp_path: Path) -> None:
    plan = recipe(task={"language_weights": {"en": 3.0}})
    task = prepared(plan, tmp_path)
    english = {tuple(ids) for ids in task._pairs["pictures"].captions[0][0:1]}
    rng = np.random.default_rng(0)
    pairs = task._pairs["pictures"]
    drawn = [tuple(draw(pairs.captions[0], pairs.odds[0], rng)) in english for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.03)  # three standard errors

    binding = plan.data["pictures"]
    assert _captions(samples()[0], binding, {"en": 0.0}) == [("rouge left", 1.0)]
    other = recipe(data={"pictures": {"tasks": ["count"]}}).data["pictures"]
    assert _captions(samples()[0], other, {}) == []


def test_a_trained_encoder_is_demanded(tmp_path: Path) -> None:
    plan = recipe(task={"model": {"vision_encoder": {"name": "vit"}}})
    with pytest.raises(InvalidArgumentError, match=r"vision_encoder\.name: 'vit' has no published weights"):
        prepared(plan, tmp_path)


def test_a_loss_of_another_model_is_refused(tmp_path: Path) -> None:
    plan = recipe(stages=[{**RECIPE["stages"][0], "objectives": [{"name": "language-modeling"}]}])
    with pytest.raises(InvalidArgumentError, match="'language-modeling' is not a loss of pairs"):
        execute(plan, Recorder(tmp_path / "run"))


def test_rows_without_an_image_or_a_caption_are_left_out(tmp_path: Path) -> None:
    plan = recipe(data={"pictures": {"tasks": ["count"]}})
    with pytest.raises(InvalidArgumentError, match=r"recipe\.data\.pictures: no row has both an image and a caption"):
        prepared(plan, tmp_path)


@pytest.mark.parametrize("name", ["quickstart-emoji", "smoke-emoji"])
def test_the_packaged_recipes_are_valid(name: str) -> None:
    plan = load_recipe(RECIPES / f"{name}.yaml")
    assert plan.name == name
    assert plan.task["name"] == "contrastive"
    registry.build("task", plan.task)
