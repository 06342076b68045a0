"""Upcycled blocks compute what their dense ones did; placement replaces the layers named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rebus.errors import InvalidArgumentError
from rebus.models.decoders.llama import FeedForward, Llama, LlamaConfig
from rebus.models.moe import MoeConfig, MoeLayer, moe_layers, take_routing
from rebus.models.moe.placement import every_nth, replace_mlps
from rebus.models.moe.upcycling import upcycle

CONFIG = LlamaConfig(width=16, num_layers=4, num_heads=2, num_kv_heads=2, hidden_width=24)
MOE = MoeConfig(num_experts=4, hidden_width=24)


def dense() -> FeedForward:
    torch.manual_seed(0)
    block = FeedForward(CONFIG)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


@pytest.mark.paper("llama3-moe", "moe-llava", "mm1")
@given(
    num_experts=st.integers(2, 8),
    router=st.sampled_from(
        [{"name": "top-k", "top_k": 2}, {"name": "noisy-top-k"}, {"name": "sigmoid"}, {"name": "top-k", "top_k": 1}]
    ),
    seed=st.integers(0, 1000),
)
def test_equals_dense_at_step_0_for_any_router(num_experts: int, router: dict[str, Any], seed: int) -> None:
    block = dense()
    torch.manual_seed(seed)
    layer = upcycle(block, MoeConfig(num_experts=num_experts, hidden_width=24, router=router))
    nn.init.normal_(layer.gate.weight)
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(layer(x), block(x))


@pytest.mark.paper("llama3-moe", "moe-llava")
def test_without_renormalisation_the_output_is_scaled_by_the_chosen_share() -> None:
    block = dense()
    layer = upcycle(block, MoeConfig(num_experts=4, hidden_width=24, router={"name": "top-k", "renormalize": False}))
    x = torch.randn(9, 16)
    actual = layer(x)
    assert layer.routing is not None
    share = layer.routing.weights_A.view(9, 2).sum(dim=1)
    assert (share < 1).all()
    torch.testing.assert_close(actual, block(x) * share[:, None])


def test_copies_are_independent_and_keep_the_dtype() -> None:
    block = dense().double()
    layer = upcycle(block, MOE)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    with torch.no_grad():
        layer.experts.down_proj[0].zero_()
    assert layer.experts.down_proj[1].abs().sum() > 0
    assert block.down_proj.weight.abs().sum() > 0


@pytest.mark.paper("mm1", "llama3-moe")
def test_an_upcycled_decoder_gives_the_same_logits_and_trains() -> None:
    torch.manual_seed(0)
    model = Llama(CONFIG, vocab_size=50)
    embeds, positions = torch.randn(2, 6, 16), torch.arange(6).expand(2, 6)
    expected = model.logits(model(embeds, positions))

    replace_mlps(model.layers, every_nth(4, 2), lambda mlp: upcycle(mlp, MOE))  # pyright: ignore[reportArgumentType]
    assert [name for name, _ in moe_layers(model)] == ["layers.1.mlp", "layers.3.mlp"]
    actual = model.logits(model(embeds, positions))
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    assert list(take_routing(model)) == ["layers.1.mlp", "layers.3.mlp"]


@pytest.mark.paper("mm1")
@pytest.mark.parametrize(
    ("num_layers", "n", "expected"),
    [(8, 2, (1, 3, 5, 7)), (8, 4, (3, 7)), (5, 2, (1, 3)), (3, 1, (0, 1, 2)), (3, 4, ())],
)
def test_every_nth_layer(num_layers: int, n: int, expected: tuple[int, ...]) -> None:
    assert every_nth(num_layers, n) == expected


def test_bad_places_are_named() -> None:
    with pytest.raises(ValueError, match="n=0"):
        every_nth(8, 0)
    with pytest.raises(ValueError, match=r"layer 4 is outside 0\.\.3"):
        replace_mlps(Llama(CONFIG, vocab_size=5).layers, [4], lambda mlp: MoeLayer(MOE, width=16))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"hidden_width": 20}, "hidden_width: is 20, the dense block has 24"),
        ({"activation": "gelu"}, "activation: is 'gelu'"),
        ({"num_shared_experts": 1}, "num_shared_experts"),
    ],
)
def test_configs_that_cannot_be_copies_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        upcycle(dense(), MoeConfig(**{"num_experts": 4, "hidden_width": 24, **settings}))
