"""A recipe whose decoder reads images by cross-attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rebus import registry
from rebus.errors import InvalidArgumentError
from rebus.models import load_model
from rebus.models.mllm import Mllm
from tests.libs.training import scenes_run
from tests.libs.training.scenes_run import Recorder, context, execute, recipe

_STAGE: dict[str, Any] = {**scenes_run.RECIPE["stages"][1], "steps": 3, "objectives": [{"name": "language-modeling"}]}
_TASK = {"cross_attention": {"every": 2, "num_heads": 2, "hidden_width": 16}}


def test_what_reads_images_is_trained_and_the_language_model_stays(tmp_path: Path) -> None:
    plan = recipe(task=_TASK, stages=[{**_STAGE, "trainable": ["connector", "cross_attention"]}])
    before = registry.build("task", plan.task).prepare(context(plan, tmp_path)).state_dict()
    recorder = Recorder(tmp_path)
    model = execute(plan, recorder).model
    assert isinstance(model, Mllm)
    after = model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    added = {name for name in after if ".cross_attention." in name}
    assert added <= moved
    assert {name for name in moved if not name.startswith("connector.")} == added
    saved = load_model(recorder.checkpoints[3] / "model").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in after.items())


def test_a_new_reader_stands_before_a_decoder_that_comes_from_a_model(tmp_path: Path) -> None:
    """And goes with it from then on."""
    first = Recorder(tmp_path / "first")
    base = execute(recipe(stages=[{**_STAGE, "steps": 1}]), first).model
    task = {key: value for key, value in scenes_run.RECIPE["task"].items() if key not in ("decoder", "tokenizer")}
    start = {"start_from": [{"model": "models/lm", "parts": ["decoder"]}]}
    stage = {**_STAGE, "steps": 2, "trainable": ["cross_attention"]}
    second = Recorder(tmp_path / "second")
    plan = scenes_run.recipe_from_mapping({**scenes_run.RECIPE, **start, "task": {**task, **_TASK}, "stages": [stage]})
    model = execute(plan, second, start_from={"decoder": first.checkpoints[1] / "model"}).model
    names = {name.replace(".layer.", "."): name for name in model.state_dict()}
    for name, value in base.state_dict().items():
        if name.startswith("decoder."):
            assert torch.equal(model.state_dict()[names[name]], value)

    plan = scenes_run.recipe_from_mapping(
        {**scenes_run.RECIPE, **start, "task": task, "stages": [{**stage, "steps": 1}]}
    )
    third = execute(plan, Recorder(tmp_path / "third"), start_from={"decoder": second.checkpoints[2] / "model"}).model
    assert isinstance(third, Mllm)
    assert isinstance(model, Mllm)
    assert third.config.cross_attention == model.config.cross_attention
    other = {"cross_attention": {"every": 1}}
    plan = scenes_run.recipe_from_mapping({**scenes_run.RECIPE, **start, "task": {**task, **other}, "stages": [stage]})
    with pytest.raises(InvalidArgumentError, match=r"recipe.task.cross_attention: the decoder comes with .*every=2"):
        execute(plan, Recorder(tmp_path), start_from={"decoder": second.checkpoints[2] / "model"})


def test_an_objective_that_reads_image_tokens_in_the_text_is_refused(tmp_path: Path) -> None:
    stage = {**_STAGE, "objectives": [{"name": "attention-grounding", "layer": 0}]}
    with pytest.raises(InvalidArgumentError, match=r"attention-grounding: images are read by cross_attention"):
        execute(recipe(task=_TASK, stages=[stage]), Recorder(tmp_path))
