"""Routers: what they choose against transformers and the papers' formulas, noise that replays, biases that balance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from rebus import registry
from rebus.errors import InvalidArgumentError
from rebus.models.moe.routers.base import Router, noise_source
from rebus.models.moe.routers.sigmoid import SigmoidRouter
from rebus.models.moe.routing import Routing

WIDTH = 16


def router(name: str, num_experts: int = 8, width: int = WIDTH, **settings: Any) -> Router:
    """A router with weights large enough that its scores differ."""
    built = registry.build("router", {"name": name, **settings}, width=width, num_experts=num_experts)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return built


def weights(routing: Routing) -> Tensor:
    """The weights as a matrix ``[T, E]``, zero where nothing was chosen."""
    dense = torch.zeros(routing.logits_TE.shape)
    dense[routing.tokens_A, routing.experts_A] = routing.weights_A
    return dense


@pytest.mark.parametrize("name", ["top-k", "switch", "noisy-top-k", "expert-choice", "sigmoid"])
@pytest.mark.parametrize("training", [True, False])
def test_every_router_gives_ordered_pairs_and_normalised_scores(name: str, training: bool) -> None:
    torch.manual_seed(0)
    built = router(name).train(training)
    routing = built(torch.randn(20, WIDTH))
    assert (routing.tokens_A.diff() >= 0).all()
    pairs = routing.tokens_A * routing.num_experts + routing.experts_A
    assert len(pairs.unique()) == len(pairs)
    torch.testing.assert_close(routing.scores_TE.sum(dim=1), torch.ones(20))
    routing.weights_A.sum().backward()
    assert built.weight.grad is not None


@pytest.mark.paper("olmoe", "mm1")
def test_top_k_weighs_before_or_after_choosing() -> None:
    torch.manual_seed(0)
    built = router("top-k", top_k=3)
    x = torch.randn(20, WIDTH)
    logits = x @ built.weight.T
    best = logits.topk(3, dim=-1)

    after = torch.zeros_like(logits).scatter(1, best.indices, best.values.softmax(dim=-1))
    torch.testing.assert_close(weights(built(x)), after)

    raw = registry.build("router", {"name": "top-k", "top_k": 3, "renormalize": False}, width=WIDTH, num_experts=8)
    raw.load_state_dict(built.state_dict())
    before = logits.softmax(dim=-1)
    torch.testing.assert_close(weights(raw(x)), before * (after > 0))


@pytest.mark.paper("switch")
def test_switch_takes_the_best_with_its_probability_and_jitters_in_training_only() -> None:
    torch.manual_seed(0)
    built = router("switch", jitter=0.3).eval()
    x = torch.randn(50, WIDTH)
    chances = (x @ built.weight.T).softmax(dim=-1)
    routing = built(x)
    torch.testing.assert_close(routing.weights_A, chances.max(dim=-1).values)
    assert torch.equal(routing.experts_A, chances.argmax(dim=-1))
    assert not torch.equal(built.train()(x).logits_TE, routing.logits_TE)


@pytest.mark.parametrize("name", ["switch", "noisy-top-k"])
def test_noise_replays_for_a_seed_and_differs_between_seeds_and_tokens(name: str) -> None:
    torch.manual_seed(0)
    built, x = router(name, seed=1), torch.randn(20, WIDTH)
    first, again = built(x), built(x)
    assert torch.equal(first.weights_A, again.weights_A)
    other = registry.build("router", {"name": name, "seed": 2}, width=WIDTH, num_experts=8)
    other.load_state_dict(built.state_dict())
    assert not torch.equal(first.weights_A, other(x).weights_A)
    # The same row among other tokens meets other noise.
    assert not torch.equal(first.weights_A[:1], built(torch.cat([x[:1], x.flip(0)])).weights_A[:1])


@pytest.mark.paper("vmoe")
@pytest.mark.parametrize("noise", ["learned", "fixed"])
def test_load_is_the_chance_of_being_chosen_under_fresh_noise(noise: str) -> None:
    """Drawn anew for one expert at a time, the others' noise kept: the share of draws that choose it."""
    torch.manual_seed(0)
    built = router("noisy-top-k", num_experts=5, noise=noise)
    x = torch.randn(6, WIDTH) * 0.3
    routing = built(x)
    assert routing.load_TE is not None
    clean = routing.logits_TE.detach()
    noisy, std = _drawn_noise(built, x, clean, noise)
    for expert in range(5):
        fresh = clean[:, expert] + std[:, expert] * torch.randn(20_000, 6)
        others = noisy[:, [e for e in range(5) if e != expert]]
        # V-MoE's threshold counts the expert's own old noise in; Shazeer's does not.
        threshold = (others if noise == "learned" else noisy).topk(2, dim=-1).values[:, -1]
        share = (fresh >= threshold).float().mean(dim=0)
        torch.testing.assert_close(routing.load_TE[:, expert].detach(), share, atol=0.02, rtol=0)


def _drawn_noise(built: Router, x: Tensor, clean: Tensor, noise: str) -> tuple[Tensor, Tensor]:
    """The noisy logits that ``built`` chose by, drawn again, and the noise's deviation."""
    drawn = torch.empty_like(clean).normal_(generator=noise_source(x, 0))
    learned = noise == "learned"
    std = torch.nn.functional.softplus(x @ built.noise_weight.detach().T) if learned else torch.full_like(clean, 1 / 5)
    return clean + drawn * std, std


def test_load_is_certain_where_every_expert_is_chosen_and_has_finite_gradients() -> None:
    built = router("noisy-top-k", num_experts=3, top_k=3)
    routing = built(torch.randn(4, WIDTH))
    assert torch.equal(routing.load_TE, torch.ones(4, 3))
    routing.load_TE.sum().backward()
    assert built.weight.grad is not None
    assert built.weight.grad.isfinite().all()


@given(st.integers(1, 40), st.integers(1, 12), st.floats(0.1, 4))
def test_expert_choice_fills_every_expert_alike(num_tokens: int, num_experts: int, factor: float) -> None:
    torch.manual_seed(num_tokens)
    routing = router("expert-choice", num_experts, capacity_factor=factor)(torch.randn(num_tokens, WIDTH))
    counts = routing.counts()
    assert (counts == counts[0]).all()
    assert counts[0] == min(num_tokens, max(1, round(num_tokens * factor / num_experts)))
    dense = weights(routing)
    lowest_taken = torch.where(dense > 0, dense, torch.inf).min(dim=0).values
    highest_left = torch.where(dense > 0, 0, routing.scores_TE).max(dim=0).values
    assert (lowest_taken >= highest_left).all()


@pytest.mark.parametrize("groups", [(1, 1), (4, 2)])
def test_sigmoid_matches_deepseek_v3(groups: tuple[int, int]) -> None:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        hidden_size=WIDTH,
        n_routed_experts=16,
        num_experts_per_tok=3,
        n_group=groups[0],
        topk_group=groups[1],
        routed_scaling_factor=2.5,
    )
    theirs = DeepseekV3TopkRouter(config)
    ours = router("sigmoid", 16, top_k=3, scale=2.5, num_groups=groups[0], groups_per_token=groups[1])
    ours.e_score_correction_bias = torch.randn(16) * 0.3
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(40, WIDTH)

    _, their_weights, their_experts = theirs(x)
    expected = torch.zeros(40, 16).scatter(1, their_experts, their_weights)
    torch.testing.assert_close(weights(ours(x)), expected)


def test_bias_updates_balance_the_load_without_touching_weights() -> None:
    torch.manual_seed(0)
    built = router("sigmoid", top_k=2, bias_update_rate=0.01)
    assert isinstance(built, SigmoidRouter)
    x = torch.randn(500, WIDTH) + 0.5
    before = built(x).counts()
    for _ in range(300):
        built.update_bias(built(x).counts())
    after = built(x)
    assert before.max() > 1.5 * 125
    assert after.counts().max() < 1.1 * 125
    torch.testing.assert_close(weights(after).sum(dim=1), torch.ones(500))


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"name": "top-k", "top_k": 0}, "top_k=0"),
        ({"name": "switch", "jitter": 1.0}, "jitter=1.0"),
        ({"name": "noisy-top-k", "noise": "pink"}, "fixed"),
        ({"name": "expert-choice", "capacity_factor": 0}, "capacity_factor=0"),
        ({"name": "sigmoid", "scale": 0}, "scale=0"),
        ({"name": "sigmoid", "bias_update_rate": -1}, "bias_update_rate=-1"),
        ({"name": "sigmoid", "num_groups": 2, "groups_per_token": 3}, "groups_per_token=3"),
        ({"name": "top_k"}, "did you mean 'top-k'"),
    ],
)
def test_bad_settings_are_named(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        registry.build("router", spec, width=WIDTH, num_experts=8)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"name": "top-k", "top_k": 9}, "top_k=9 is more than num_experts=8"),
        ({"name": "sigmoid", "num_groups": 3}, "num_experts=8 does not fill num_groups=3"),
        ({"name": "sigmoid", "num_groups": 4, "top_k": 3}, "top_k=3 is more than the 2"),
    ],
)
def test_settings_that_do_not_fit_the_experts_are_named(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        registry.build("router", spec, width=WIDTH, num_experts=8)


def test_logits_are_float32_under_autocast() -> None:
    built, x = router("top-k"), torch.randn(9, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = built(x)
    torch.testing.assert_close(routing.logits_TE, x @ built.weight.T)
    assert routing.scores_TE.dtype == torch.float32
