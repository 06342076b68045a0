"""Routing statistics on hand-made choices and at their known extremes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rebus.models.moe import MoeConfig, MoeLayer
from rebus.models.moe.statistics import (
    co_activation,
    domain_specialization,
    expert_load,
    gate_entropy,
    router_saturation,
    unused_share,
    vocabulary_specialization,
)

# Four tokens that choose two of four experts each; nobody chooses the last.
CHOICES = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)


def random_choices(seed: int, num_tokens: int, num_experts: int, top_k: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    best = torch.rand(num_tokens, num_experts, generator=generator).topk(top_k, dim=1).indices
    return torch.zeros(num_tokens, num_experts, dtype=torch.bool).scatter(1, best, True)


@pytest.mark.paper("olmoe", "moe-quiz-eval")
def test_load_and_unused_experts() -> None:
    torch.testing.assert_close(expert_load(CHOICES), torch.tensor([3, 3, 2, 0]) / 8)
    assert unused_share(CHOICES) == 0.25


@pytest.mark.paper("olmoe")
def test_co_activation_by_hand() -> None:
    expected = torch.tensor([[3, 2, 1, 0], [2, 3, 1, 0], [1, 1, 2, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(co_activation(CHOICES), expected / torch.tensor([[3], [3], [2], [1]]))


@pytest.mark.paper("olmoe")
@given(st.integers(0, 100), st.integers(1, 30), st.integers(2, 8))
def test_rows_are_bounded_and_sum_to_the_choices(seed: int, num_tokens: int, num_experts: int) -> None:
    choices = random_choices(seed, num_tokens, num_experts, 2)
    together = co_activation(choices)
    assert (together <= 1).all()
    used = choices.any(dim=0)
    torch.testing.assert_close(together.sum(dim=1)[used], torch.full((int(used.sum()),), 2.0))
    domains = torch.arange(num_tokens) % 3
    shares = domain_specialization(choices, domains, 3)
    torch.testing.assert_close(shares.sum(dim=1)[: min(num_tokens, 3)], torch.full((min(num_tokens, 3),), 2.0))


@pytest.mark.paper("olmoe")
def test_specialization_by_hand() -> None:
    shares = domain_specialization(CHOICES, torch.tensor([0, 0, 1, 1]), 3)
    expected = torch.tensor([[1, 1, 0, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(shares, expected)
    by_word = vocabulary_specialization(CHOICES, torch.tensor([7, 7, 2, 7]), 9)
    assert by_word.shape == (9, 4)
    torch.testing.assert_close(by_word[7], torch.tensor([2, 3, 1, 0]) / 3)
    torch.testing.assert_close(by_word[2], torch.tensor([1.0, 0, 1, 0]))


@pytest.mark.paper("olmoe")
def test_saturation_is_one_at_the_end_and_by_chance_at_the_start() -> None:
    final = random_choices(0, 20_000, 16, 4)
    assert router_saturation(final, final) == 1
    torch.testing.assert_close(
        router_saturation(random_choices(1, 20_000, 16, 4), final), torch.tensor(4 / 16), atol=0.01, rtol=0
    )


@pytest.mark.paper("moe-quiz-eval")
def test_entropy_is_one_where_even_and_zero_where_certain() -> None:
    torch.testing.assert_close(gate_entropy(torch.full((5, 8), 1 / 8)), torch.tensor(1.0))
    assert gate_entropy(torch.eye(8)) == 0


@pytest.mark.paper("moe-quiz-eval")
def test_choices_of_a_layer_count_k_a_token() -> None:
    layer = MoeLayer(MoeConfig(num_experts=6, hidden_width=8), width=8)
    layer(torch.randn(3, 5, 8))
    assert layer.routing is not None
    choices = layer.routing.detach().choices()
    assert (choices.sum(dim=1) == 2).all()
    assert torch.equal(choices.sum(dim=0), layer.routing.counts())
