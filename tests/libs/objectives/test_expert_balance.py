"""The objective gathers what the experts' layers decided in the step's forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rebus import registry
from rebus.data.encoding import Row
from rebus.models.media import MediaBatch
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.moe import AuxiliaryLossConfig, MoeConfig, auxiliary_loss, moe_layers
from rebus.models.moe.placement import every_nth, replace_mlps
from rebus.models.moe.upcycling import upcycle
from rebus.models.packing import pack_rows
from rebus.objectives.base import MllmBatch, MllmOutputs


def mllm(*, experts: bool) -> Mllm:
    torch.manual_seed(0)
    decoder = {"name": "llama", "width": 16, "num_layers": 4, "num_heads": 2, "num_kv_heads": 2, "hidden_width": 24}
    model = Mllm(
        MllmConfig(
            encoder={"name": "conv-vit", "image_size": 64, "channels": [4, 4, 8, 8]},
            decoder=decoder,
            vocab_size=50,
            image_token_id=49,
        )
    )
    if experts:
        config = MoeConfig(num_experts=4, hidden_width=24)
        replace_mlps(model.decoder.layers, every_nth(4, 2), lambda mlp: upcycle(mlp, config))  # pyright: ignore
    return model


def loss(model: Mllm, config: AuxiliaryLossConfig) -> Tensor:
    """The objective after one packed forward pass over a text."""
    ids = torch.arange(12).numpy()
    row = Row(input_ids=ids, labels=ids, positions=ids, branches=0 * ids, images=())
    rows = pack_rows([row], image_token_id=49)
    batch = MllmBatch(rows=rows, media=MediaBatch.of_images(torch.zeros(0, 3, 64, 64)))
    outputs = MllmOutputs(batch=batch, image_features=None, hidden_states=model.forward_packed(rows, None))
    kept = [layer.routing for _, layer in moe_layers(model)]
    objective = registry.build(
        "objective", {"name": "expert-balance", "load_balance": config.load_balance, "router_z": config.router_z}
    )
    found = objective(model, outputs)
    expected, _ = auxiliary_loss([routing for routing in kept if routing is not None], config)
    torch.testing.assert_close(found, expected)
    return found


@pytest.mark.paper("mm1")
def test_sums_the_layers_losses_and_reaches_the_routers() -> None:
    model = mllm(experts=True)
    loss(model, AuxiliaryLossConfig(load_balance=0.5, router_z=0.1)).backward()
    routers = [layer.gate.weight.grad for _, layer in moe_layers(model)]
    assert len(routers) == 2
    assert all(grad is not None and grad.abs().sum() > 0 for grad in routers)
    assert all(layer.routing is None for _, layer in moe_layers(model))


def test_is_zero_without_experts() -> None:
    assert loss(mllm(experts=False), AuxiliaryLossConfig()) == 0
