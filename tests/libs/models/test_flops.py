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
from rebus.models.flops import (
    TRAINING_FACTOR,
    attention_flops,
    decoder_token_flops,
    encoder_image_flops,
    token_flops,
    weightless,
)
from rebus.models.flops import counted as counted_by_shape
from rebus.models.moe import MoeConfig, MoeLayer

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
    model = decoder(num_layers=4, moe=MoeConfig(num_experts=8, hidden_width=20), moe_every=2)
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


TRANSFORMER = {"image_size": 32, "patch_size": 8, "width": 24, "num_layers": 2, "num_heads": 3, "hidden_width": 40}


@pytest.mark.parametrize(
    "spec",
    [{"name": "vit"}, {"name": "conv-vit"}, {"name": "efficientnet-lite0", "image_size": 64}]
    + [
        {"name": name, **TRANSFORMER}
        for name in ("clip", "siglip", "siglip2", "siglip-navit", "dinov2", "internvit", "aim")
    ],
    ids=lambda spec: spec["name"],
)
def test_shapes_alone_give_what_an_encoder_takes(spec: dict[str, Any]) -> None:
    encoder = registry.build("encoder", spec).eval()
    pixels = torch.randn(1, 3, encoder.image_size, encoder.image_size)
    copy = weightless(encoder)
    features, flops = counted_by_shape(lambda: copy(pixels.to("meta")))
    assert flops == counted(lambda: encoder(pixels)) > 0
    assert features.shape == encoder(pixels).shape


@pytest.mark.parametrize("name", [component.name for component in registry.components("connector")])
def test_shapes_alone_give_what_a_connector_takes(name: str) -> None:
    spec = {"name": name, **({"layers": [1, 2], "last_layer": 3} if name == "dense" else {})}
    connector = registry.build("connector", spec, width_in=64, width_out=48, grid=(8, 8)).eval()
    features: Any = torch.randn(1, 64, 64)
    if layers := getattr(connector, "feature_layers", ()):
        features = [features] * len(layers)
    shapes = [x.to("meta") for x in features] if layers else features.to("meta")
    copy = weightless(connector)
    assert counted_by_shape(lambda: copy(shapes))[1] == counted(lambda: connector(features)) > 0


def test_a_weightless_copy_leaves_the_module_as_it_was() -> None:
    encoder = registry.build("encoder", {"name": "conv-vit"}).train()
    state = torch.get_rng_state()
    copy = weightless(encoder)
    counted_by_shape(lambda: copy(torch.empty(1, 3, 64, 64, device="meta")))
    assert encoder.training
    assert {weight.device.type for weight in encoder.parameters()} == {"cpu"}
    assert {weight.device.type for weight in copy.parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sliding_window_bounds_the_attention() -> None:
    whole, windowed = decoder(num_layers=3), decoder(num_layers=3, sliding_window=8, window_from_layer=1)
    saved = decoder_token_flops(whole, TOKENS) - decoder_token_flops(windowed, TOKENS)
    assert saved == 2 * attention_flops(32, TOKENS - 8)
    assert decoder_token_flops(whole, 8) == decoder_token_flops(windowed, 8)
