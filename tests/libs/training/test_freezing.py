"""A stage trains the parts that it names: every weight and buffer of the others stays bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rebus import registry
from rebus.data.scenes import TEXT
from rebus.models.mllm import Mllm
from tests.libs.training import scenes_run
from tests.libs.training.scenes_run import Recorder, context, execute, recipe

PARTS = ("vision_encoder", "connector", "decoder", "embeddings")
_STAGE: dict[str, Any] = {**scenes_run.RECIPE["stages"][1], "steps": 2, "objectives": [{"name": "language-modeling"}]}


def decoder(*, tied: bool) -> dict[str, Any]:
    return {"decoder": {**scenes_run.RECIPE["task"]["decoder"], "tie_embeddings": tied}}


@pytest.mark.parametrize(("tied", "optimizer"), [(True, "muon"), (False, "adamw")])
@pytest.mark.parametrize("trainable", [[part] for part in PARTS] + [["connector", "embeddings"]])
def test_what_a_stage_does_not_name_stays_bit_for_bit(
    trainable: list[str], tied: bool, optimizer: str, tmp_path: Path
) -> None:
    stage = {**_STAGE, "trainable": trainable, "optimizer": {"name": optimizer}}
    plan = recipe(stages=[stage], task=decoder(tied=tied))
    before = registry.build("task", plan.task).prepare(context(plan, tmp_path)).state_dict()
    model = execute(plan, Recorder(tmp_path)).model
    assert isinstance(model, Mllm)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    parts: dict[str, nn.Module] = {
        "vision_encoder": model.vision_encoder,
        "connector": model.connector,
        "decoder": model.decoder,
        "embeddings": model.decoder.embed_tokens,
    }
    chosen = [parts[part] for part in trainable]
    held = {id(tensor) for part in chosen for tensor in (*part.parameters(), *part.buffers())}
    state = model.state_dict(keep_vars=True)
    assert {name for name in moved if id(state[name]) not in held} == set()
    weights = {id(parameter) for part in chosen for parameter in part.parameters()}
    assert {name for name, tensor in state.items() if id(tensor) in weights} <= moved
    assert (model.decoder.lm_head is None) == tied


@pytest.mark.parametrize("trainable", ["vision_encoder", "connector"])
def test_a_batch_of_text_alone_leaves_what_reads_images_as_it_is(trainable: str, tmp_path: Path) -> None:
    """Mixtures hold text: a step without images is a step, not an error."""
    stage = {**_STAGE, "trainable": [trainable], "mixture": {"text": 1}}
    plan = recipe(stages=[stage], data={"text": {"dataset": "scenes", "sources": [TEXT]}})
    before = registry.build("task", plan.task).prepare(context(plan, tmp_path)).state_dict()
    recorder = Recorder(tmp_path)
    after = execute(plan, recorder).model.state_dict()
    assert len(recorder.losses) == 2
    assert all(torch.equal(value, before[name]) for name, value in after.items())
