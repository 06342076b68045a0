"""Auxiliary losses: against transformers, at their closed-form values, and what descending them does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from rebus import registry
from rebus.models.moe import AuxiliaryLossConfig, MoeConfig, MoeLayer, Routing, auxiliary_loss
from rebus.models.moe.losses import (
    gate_importance_loss,
    importance_loss,
    load_balance_loss,
    load_loss,
    router_z_loss,
    squared_variation,
)
from rebus.models.moe.routing import token_choice


def routed(logits_TE: Tensor, top_k: int) -> Routing:
    scores = logits_TE.softmax(dim=-1)
    weights, experts = scores.topk(top_k, dim=-1)
    return token_choice(logits_TE, scores, experts, weights)


def even(num_experts: int, top_k: int) -> Routing:
    """Every expert is chosen alike, with equal scores."""
    experts = (torch.arange(num_experts)[:, None] + torch.arange(top_k)) % num_experts
    logits = torch.zeros(num_experts, num_experts)
    return token_choice(logits, logits.softmax(dim=-1), experts, torch.full(experts.shape, 1 / top_k))


@pytest.mark.paper("olmoe", "moe-llava")
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_load_balance_matches_transformers(top_k: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 8, requires_grad=True)
    ours, theirs = load_balance_loss(routed(logits, top_k)), load_balancing_loss_func((logits,), 8, top_k)
    assert isinstance(theirs, Tensor)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


@pytest.mark.paper("olmoe", "switch")
@pytest.mark.parametrize("top_k", [1, 3])
def test_balanced_routing_gives_the_least_losses(top_k: int) -> None:
    routing = even(6, top_k)
    torch.testing.assert_close(load_balance_loss(routing), torch.tensor(float(top_k)))
    assert importance_loss(routing) == gate_importance_loss(routing) == 0
    torch.testing.assert_close(router_z_loss(routing), torch.tensor(math.log(6) ** 2))


@pytest.mark.paper("vmoe")
def test_variation_is_zero_only_where_even_and_scale_free() -> None:
    assert squared_variation(torch.full((5,), 3.0)) == 0
    torch.testing.assert_close(squared_variation(torch.tensor([1.0, 3.0])), torch.tensor(0.25))
    torch.testing.assert_close(squared_variation(torch.tensor([10.0, 30.0])), torch.tensor(0.25))


def test_importance_of_all_scores_and_of_the_chosen_only() -> None:
    torch.manual_seed(0)
    routing = routed(torch.randn(20, 4), 2)
    dense = torch.zeros(20, 4)
    dense[routing.tokens_A, routing.experts_A] = routing.weights_A
    torch.testing.assert_close(importance_loss(routing), squared_variation(routing.scores_TE.sum(0)))
    torch.testing.assert_close(gate_importance_loss(routing), squared_variation(dense.sum(0)))


@pytest.mark.paper("olmoe")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_z_loss_shrinks_the_logits(seed: int) -> None:
    without, held = (_trained(seed, AuxiliaryLossConfig(load_balance=0, router_z=z)).logits_TE for z in (0, 0.1))
    # Not their absolute values: logits far below the others' do no harm, and the loss leaves them alone.
    assert held.max() < without.max()
    assert held.logsumexp(dim=-1).abs().mean() < without.logsumexp(dim=-1).abs().mean()


@pytest.mark.paper("switch", "mm1")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_balance_losses_even_the_load(seed: int) -> None:
    none = AuxiliaryLossConfig(load_balance=0, router_z=0)
    alone = _trained(seed, none).counts().max()
    for config in (
        AuxiliaryLossConfig(load_balance=1.0, router_z=0),
        AuxiliaryLossConfig(load_balance=0, router_z=0, importance=1.0, load=1.0),
    ):
        assert _trained(seed, config).counts().max() < alone


def _trained(seed: int, losses: AuxiliaryLossConfig) -> Routing:
    """The routing after some steps of a small regression with these losses.

    The router starts with large weights on tokens that have a direction in common, so that few experts take them all.
    """
    torch.manual_seed(seed)
    layer = MoeLayer(MoeConfig(num_experts=4, hidden_width=8, router={"name": "noisy-top-k"}), width=8)
    torch.nn.init.normal_(layer.gate.weight)
    x = torch.randn(100, 8) + 2 * torch.randn(8)
    target = torch.randn(100, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        out = layer(x)
        assert layer.routing is not None
        total, _ = auxiliary_loss([layer.routing], losses)
        ((out - target).square().mean() + total).backward()
        optimizer.step()
    layer.eval()(x)
    assert layer.routing is not None
    return layer.routing


def test_terms_are_means_over_layers_and_the_sum_weighs_them() -> None:
    torch.manual_seed(0)
    layers = [routed(torch.randn(20, 4, requires_grad=True), 2) for _ in range(3)]
    total, terms = auxiliary_loss(iter(layers), AuxiliaryLossConfig(load_balance=0.5, router_z=0.25))
    assert list(terms) == ["load_balance", "router_z"]
    torch.testing.assert_close(terms["router_z"], torch.stack([router_z_loss(r) for r in layers]).mean())
    torch.testing.assert_close(total, 0.5 * terms["load_balance"] + 0.25 * terms["router_z"])
    assert total.requires_grad
    assert not terms["router_z"].requires_grad
    assert auxiliary_loss([], AuxiliaryLossConfig())[0] == 0


def test_sigmoid_scores_balance_too() -> None:
    torch.manual_seed(0)
    router = registry.build("router", {"name": "sigmoid"}, width=8, num_experts=4)
    load_balance_loss(router(torch.randn(20, 8))).backward()
    assert router.weight.grad.abs().sum() > 0


def test_a_load_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a noisy router in training"):
        load_loss(even(4, 2))


@pytest.mark.parametrize("name", ["load_balance", "router_z", "importance", "gate_importance", "load"])
def test_bad_weights_are_named(name: str) -> None:
    settings: dict[str, Any] = {name: -0.1}
    with pytest.raises(ValueError, match=f"{name}=-0.1"):
        AuxiliaryLossConfig(**settings)
