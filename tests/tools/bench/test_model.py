"""The model's benchmark compares the same work: equal losses and equal gradients."""

from __future__ import annotations

import torch

from rebus.models.mllm import Mllm
from tools.bench.model import NAMES, Sizes, contender, conversations


def test_contenders_compute_the_same() -> None:
    sizes = Sizes(
        vocab=64, width=32, layers=2, heads=2, image_side=16, patch_side=8, vision_width=16, vision_layers=1, rows=6
    )
    rows = conversations(sizes)
    steps = {name: contender(name, sizes, rows) for name in NAMES}
    losses = [step.loss() for step in steps.values()]
    torch.testing.assert_close(losses[1:], [losses[0]] * 2)

    for step in steps.values():
        step.run()
    ours = steps["rebus"].model
    assert isinstance(ours, Mllm)
    for name in ("llava", "bucketed"):
        theirs = dict(steps[name].model.named_parameters())
        for key, gradient in (
            ("model.language_model.embed_tokens.weight", ours.decoder.embed_tokens.weight.grad),
            ("model.multi_modal_projector.linear_1.weight", ours.connector.fc1.weight.grad),
            ("model.vision_tower.embeddings.patch_embedding.weight", ours.vision_encoder.patch_embed.weight.grad),
        ):
            torch.testing.assert_close(theirs[key].grad, gradient)
