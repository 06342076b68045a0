"""Samplers against the closed form of the distribution they draw from, and against transformers' cuts."""

from __future__ import annotations

import pytest
import torch
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from rebus import registry
from rebus.errors import InvalidArgumentError
from rebus.generation.requests import Sampling
from rebus.generation.samplers import Categorical, CategoricalConfig

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0])


def frequencies(config: CategoricalConfig, draws: int = 20_000) -> torch.Tensor:
    """Shares of the tokens drawn for evenly spaced numbers: the integral over the uniform distribution."""
    numbers = (torch.arange(draws) + 0.5) / draws
    tokens = Categorical(config)(LOGITS.expand(draws, -1), numbers)
    return torch.bincount(tokens, minlength=len(LOGITS)) / draws


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_draws_from_the_softmax(temperature: float) -> None:
    found = frequencies(CategoricalConfig(temperature=temperature))
    torch.testing.assert_close(found, (LOGITS / temperature).softmax(-1), atol=1e-4, rtol=0)


def test_top_k_renormalises_the_k_likeliest() -> None:
    expected = torch.zeros(5)
    expected[[1, 3]] = torch.tensor([2.0, 1.0]).softmax(-1)
    torch.testing.assert_close(frequencies(CategoricalConfig(top_k=2)), expected, atol=1e-4, rtol=0)


def test_top_p_keeps_the_fewest_that_reach_the_mass() -> None:
    """Softmax is .529 .195 .118 .072 .026 ...: the first holds .5, the first two reach .6."""
    assert (frequencies(CategoricalConfig(top_p=0.5)) > 0).tolist() == [False, True, False, False, False]
    assert (frequencies(CategoricalConfig(top_p=0.6)) > 0).tolist() == [False, True, False, True, False]
    assert (frequencies(CategoricalConfig(top_p=1.0)) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_cuts_equal_those_of_transformers(seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(3, 50) * 3
    warped = TopPLogitsWarper(0.8)(torch.zeros(3, 1), TopKLogitsWarper(12)(torch.zeros(3, 1), logits / 0.7))
    probabilities, ids = Categorical(CategoricalConfig(temperature=0.7, top_k=12, top_p=0.8)).probabilities(logits)
    found = torch.zeros(3, 50, dtype=torch.float64).scatter(1, ids, probabilities)
    torch.testing.assert_close(found, warped.double().softmax(-1), atol=1e-6, rtol=1e-5)


def test_the_last_number_below_one_draws_a_possible_token() -> None:
    number = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert Categorical(CategoricalConfig(top_k=2))(LOGITS[None], number).tolist() == [3]


def test_greedy_takes_the_first_of_a_tie() -> None:
    greedy = registry.build("sampler", {"name": "greedy"})
    assert greedy(torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]]), torch.zeros(2)).tolist() == [1, 0]


def test_settings_are_checked_and_named() -> None:
    with pytest.raises(InvalidArgumentError, match="sampling: temperature=-1"):
        Sampling(temperature=-1).sampler()
    with pytest.raises(InvalidArgumentError, match=r"top_p=1\.5"):
        Sampling(temperature=1, top_p=1.5).sampler()
