"""A recipe with tiles, frames and sound: it trains, counts what it sees, packs by it, and its model answers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rebus import registry
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError
from rebus.generation.generator import Generator
from rebus.generation.requests import Prompt, Sampling
from rebus.models.io import load_tensors
from rebus.training.checkpoints import MODEL_FOLDER
from rebus.training.loop import train
from rebus.training.recipe import TrainingRecipe, recipe_from_mapping
from rebus.training.sources import SampleList
from rebus.training.task import TaskContext
from tests.libs.training.scenes_run import RECIPE, Recorder
from tests.media_files import clip, tone, wav
from tests.tiny_model import png

MEDIA = (png((200, 30, 30)), wav(tone(0.3)), clip(frames=6, size=(32, 32)), png((30, 30, 200)))
TASK = {
    **RECIPE["task"],
    "encoder": {
        "name": "concatenated",
        "encoders": [
            {"name": "vit", "image_size": 16, "patch_size": 8, "width": 8, "num_layers": 1, "num_heads": 2},
            {"name": "vit", "image_size": 32, "patch_size": 8, "width": 8, "num_layers": 1, "num_heads": 2},
        ],
    },
    "media": {
        "splitter": {"name": "sub-images"},
        "frames": {"name": "uniform", "num_frames": 3},
        "audio": {"num_mels": 8, "chunk_seconds": 0.2},
    },
    "audio": {
        "encoder": {"name": "whisper", "num_mels": 8, "num_frames": 20, "width": 8, "num_layers": 1, "num_heads": 2},
        "connector": {"name": "attention-pool", "num_tokens": 2, "num_heads": 2},
    },
    "frame_positions": {"num_frames": 3},
    "encoding": {"max_images": 13},
}


def recipe(
    *, objective: str = "language-modeling", max_images: int = 13, task: Mapping[str, Any] = TASK
) -> TrainingRecipe:
    stage: dict[str, Any] = {
        "name": "all",
        "steps": 2,
        "mixture": {"all": 1},
        "objectives": [{"name": objective}],
        "batch_size": 1,
        "pack": {"max_tokens": 1024, "max_images": max_images, "buffer": 4},
    }
    data = {"all": {"dataset": "media"}}
    return recipe_from_mapping({**RECIPE, "task": task, "data": data, "stages": [stage]})


def samples() -> list[Sample]:
    """Words, image, words, sound, video, image; and a sound alone."""
    region = (0.0, 0.0, 0.5, 0.5)
    told = Segment(text="a red square and a tone", role="assistant", loss=True, regions=(region,))
    image, sound, video, last = (
        Segment(type=kind, media=at) for at, kind in enumerate(("image", "audio", "video", "image"))
    )
    ask = Segment(text="what is this?")
    shown = [ask, image, ask, sound, video, last, told]
    heard = [Segment(type="audio", media=1, start_seconds=0.1), ask, told]
    return [Sample(id=f"{at}", segments=heard if at % 2 else shown, media=MEDIA) for at in range(6)]


def execute(
    plan: TrainingRecipe, folder: Path, rows: Sequence[Sample] | None = None
) -> tuple[Recorder, dict[str, Any]]:
    recorder = Recorder(folder)
    context = TaskContext(
        recipe=plan,
        sources={"all": SampleList(samples() if rows is None else rows)},
        versions={"all": "test"},
        resume_from=None,
        cache_dir=folder,
        seed=0,
        progress=lambda message: None,
    )
    trained = train(registry.build("task", plan.task), context, recorder)
    return recorder, dict(trained.state.consumed)


def test_two_steps_with_tiles_frames_and_sound(tmp_path: Path) -> None:
    recorder, consumed = execute(recipe(), tmp_path)
    assert len(recorder.losses) == 2
    assert consumed["all"].images % 13 == 0  # two images of five tiles, three frames
    assert consumed["all"].images > 0
    folder = recorder.checkpoints[max(recorder.checkpoints)] / MODEL_FOLDER
    weights = load_tensors(folder / "model.safetensors")
    assert weights["frame_positions.position"].any()  # learned from zero
    prompt = Prompt(segments=samples()[0].segments[:-1], media=MEDIA)
    answers = Generator.load(folder).generate([prompt], Sampling(max_new_tokens=2))
    assert answers[0].num_prompt_tokens > 13 * 4
    again, _ = execute(recipe(), tmp_path / "again")
    assert again.losses == recorder.losses
    assert torch.isfinite(torch.tensor(recorder.losses)).all()


JOINED = {
    **RECIPE["task"],
    "encoder": {"name": "vit", "image_size": 32, "patch_size": 16, "width": 8, "num_layers": 1, "num_heads": 2},
    "connector": {"name": "tiled-mlp", "grids": [[1, 2], [2, 1], [1, 1]]},
}


def test_two_steps_with_images_whose_tiles_are_joined(tmp_path: Path) -> None:
    """A wide and a square image, a tall one alone: as many tokens each as the connector makes of them."""
    told = Segment(text="a red cube", role="assistant", loss=True)
    wide, square, tall = (noise(height, width) for height, width in ((20, 64), (32, 32), (60, 32)))
    both = [Segment(type="image", media=0), Segment(text="and"), Segment(type="image", media=1)]
    one = [Segment(type="image", media=0)]
    rows = [
        Sample(id=f"{at}", segments=[*(one if at % 2 else both), told], media=[tall] if at % 2 else [wide, square])
        for at in range(6)
    ]
    recorder, consumed = execute(recipe(max_images=16, task=JOINED), tmp_path, rows)
    assert len(recorder.losses) == 2
    assert torch.isfinite(torch.tensor(recorder.losses)).all()
    # Three squares of the wide and the tall image, two of the square one.
    assert consumed["all"].images >= 3 * consumed["all"].samples
    folder = recorder.checkpoints[max(recorder.checkpoints)] / MODEL_FOLDER
    answers = Generator.load(folder).generate([Prompt(segments=both, media=[wide, square])], Sampling(max_new_tokens=2))
    # An overview of 4 tokens each, then 2 rows of 4 and of 2 and a newline after each row; marks and a word or two.
    words = answers[0].num_prompt_tokens - (4 + 2 * 5) - (4 + 2 * 3)
    assert 3 <= words <= 8


QUARTERED = {
    **RECIPE["task"],
    "encoder": {**JOINED["encoder"], "name": "siglip-navit"},
    "connector": {"name": "perceiver-resampler", "num_tokens": 3, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1},
    "preprocess": {"image_size": 32, "resize": "within", "min_size": 16},
    "media": {"splitter": {"name": "quarters"}},
}


def test_two_steps_with_quarters_of_their_own_shapes(tmp_path: Path) -> None:
    told = Segment(text="a red cube", role="assistant", loss=True)
    shown = [Segment(type="image", media=0), Segment(text="what is this?")]
    rows = [Sample(id=f"{at}", segments=[*shown, told], media=[noise(20 + at, 60)]) for at in range(6)]
    recorder, consumed = execute(recipe(max_images=16, task=QUARTERED), tmp_path, rows)
    assert len(recorder.losses) == 2
    assert torch.isfinite(torch.tensor(recorder.losses)).all()
    assert consumed["all"].images == 5 * consumed["all"].samples
    folder = recorder.checkpoints[max(recorder.checkpoints)] / MODEL_FOLDER
    answers = Generator.load(folder).generate([Prompt(segments=shown, media=rows[0].media)], Sampling(max_new_tokens=2))
    assert answers[0].num_prompt_tokens > 5 * 3


def noise(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_packs_count_tiles(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="max_images=12 are below the bounds"):
        execute(recipe(max_images=12), tmp_path)


@pytest.mark.parametrize("objective", ["region-words", "attention-grounding"])
def test_objectives_that_need_one_grid_an_image_are_refused(tmp_path: Path, objective: str) -> None:
    with pytest.raises(InvalidArgumentError, match="model.media: an image may be many tiles"):
        execute(recipe(objective=objective), tmp_path)
