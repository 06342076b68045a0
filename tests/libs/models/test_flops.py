"""Analytic FLOPs against what torch counts while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rebus import registry
from rebus.models.decoders.llama import Llama, LlamaConfig
from rebus.models.flops import TRAINING_FACTOR, decoder_token_flops, encoder_image_flops, token_flops
from rebus.models.moe import MoeConfig, MoeLayer
from rebus.models.moe.placement import every_nth, replace_mlps

TOKENS = 24


def counted(run: Callable[[], Tensor], *, backward: bool = False) -> int:
    # The CPU's fused attention is not among the operations that the counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = run()
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


def decoder(**settings: Any) -> Llama:
    config = LlamaConfig(**{"width": 32, "num_layers": 2, "num_heads": 4, "hidden_width": 48, **settings})
    return Llama(config, vocab_size=50)


def run_decoder(model: Llama) -> Callable[[], Tensor]:
    embeds = torch.randn(1, TOKENS, model.config.width, requires_grad=True)
    return lambda: model.logits(model(embeds, torch.arange(TOKENS)[None]))


@pytest.mark.paper("moe-lm-scaling")
@pytest.mark.parametrize("settings", [{}, {"num_kv_heads": 2}, {"num_layers": 3, "tie_embeddings": False}])
def test_a_decoder(settings: dict[str, Any]) -> None:
    model = decoder(**settings)
    # Scores that causality hides are computed too, so the context is the whole row.
    assert TOKENS * decoder_token_flops(model, TOKENS) == pytest.approx(counted(run_decoder(model)), rel=0.01)


@pytest.mark.paper("moe-lm-scaling")
@pytest.mark.parametrize(
    "router",
    [
        {"name": "top-k", "top_k": 3},
        {"name": "switch"},
        {"name": "noisy-top-k"},
        {"name": "sigmoid"},
        {"name": "expert-choice", "capacity_factor": 2.0},
    ],
)
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_a_mixture_of_experts_counts_what_is_active(router: dict[str, Any], shared: int, activation: Any) -> None:
    config = MoeConfig(num_experts=8, hidden_width=20, router=router, num_shared_experts=shared, activation=activation)
    layer = MoeLayer(config, width=32)
    found = counted(lambda: layer(torch.randn(TOKENS, 32)))
    assert TOKENS * token_flops(layer) == pytest.approx(found, rel=0.01)


@pytest.mark.paper("moe-lm-scaling")
def test_a_decoder_with_experts_in_some_layers_and_its_training() -> None:
    model = decoder(num_layers=4)
    config = MoeConfig(num_experts=8, hidden_width=20)
    replace_mlps(model.layers, every_nth(4, 2), lambda mlp: MoeLayer(config, width=32))
    expected = TOKENS * decoder_token_flops(model, TOKENS)
    assert expected == pytest.approx(counted(run_decoder(model)), rel=0.01)
    training = counted(run_decoder(model), backward=True)
    assert TRAINING_FACTOR * expected == pytest.approx(training, rel=0.01)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "vit"},
        {"name": "vit", "patch_size": 8, "num_layers": 2},
        {"name": "conv-vit"},
        {"name": "conv-vit", "num_layers": 2},
        {"name": "efficientnet-lite0"},
    ],
)
def test_encoders(spec: dict[str, Any]) -> None:
    encoder = registry.build("encoder", spec).eval()
    pixels = torch.randn(1, 3, encoder.image_size, encoder.image_size)
    assert encoder_image_flops(encoder) == pytest.approx(counted(lambda: encoder(pixels)), rel=0.01)
