"""The quickstart's emoji recipe on the real pictures: held-out families are found by their English names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rebus import registry
from rebus.data.readers.emoji import EmojiConfig, EmojiReader
from rebus.data.sample import Sample
from rebus.errors import FailedPreconditionError
from rebus.retrieval import Embedder
from rebus.training.loop import train
from rebus.training.recipe import load_recipe
from rebus.training.sources import SampleList
from rebus.training.task import TaskContext
from tests.libs.training.scenes_run import Recorder

RECIPE = Path(__file__).resolve().parents[3] / "pipelines" / "recipes" / "quickstart-emoji.yaml"
TIMES_CHANCE = 20


@pytest.fixture(scope="module")
def emojis() -> list[Sample]:
    try:
        return [sample for sample in EmojiReader(EmojiConfig()) if isinstance(sample, Sample)]
    except FailedPreconditionError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_held_out_families_are_found_by_their_names(emojis: list[Sample], tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    context = TaskContext(
        recipe=recipe,
        sources={"emoji": SampleList([sample for sample in emojis if sample.split == "train"])},
        versions={"emoji": "test"},
        cache_dir=tmp_path,
        seed=0,
        progress=lambda message: None,
    )
    recorder = Recorder(tmp_path)
    train(registry.build("task", recipe.task), context, recorder)
    embedder = Embedder.load(recorder.checkpoints[recipe.total_steps] / "model")

    held_out = [sample for sample in emojis if sample.split == "test" and sample.metadata["canonical"]]
    images = embedder.embed_images([sample.media[0] for sample in held_out])
    texts = embedder.embed_texts([sample.metadata["names"]["en"] for sample in held_out])
    recall_at_1 = np.mean((texts @ images.T).argmax(1) == np.arange(len(held_out)))
    assert len(held_out) >= 160
    assert recall_at_1 >= TIMES_CHANCE / len(held_out)
