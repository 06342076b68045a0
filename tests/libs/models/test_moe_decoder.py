"""Decoders that a recipe makes mixtures of experts: where the experts stand, how they start, what a folder keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rebus import registry
from rebus.errors import InvalidArgumentError
from rebus.models import load_model, save_model
from rebus.models.causal_lm import CausalLm, CausalLmConfig
from rebus.models.decoders.transformer import Decoder
from rebus.models.moe import MoeConfig, moe_layers

VOCAB = 41
SIZES: dict[str, Any] = {"width": 64, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "hidden_width": 96}
MOE: dict[str, Any] = {"num_experts": 4, "hidden_width": 48, "router": {"name": "top-k", "top_k": 2}}


def build(name: str = "llama", *, seed: int = 0, **settings: Any) -> Decoder:
    torch.manual_seed(seed)
    return registry.build("decoder", {**SIZES, "name": name, **settings}, vocab_size=VOCAB)


@pytest.mark.paper("mm1")
@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (4, [3])])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gpt2", "opt"])
def test_every_nth_layer_of_any_decoder_holds_experts(name: str, every: int, expected: list[int]) -> None:
    model = build(name, moe=MOE, moe_every=every)
    assert [layer for layer, _ in moe_layers(model)] == [f"layers.{layer}.mlp" for layer in expected]


@pytest.mark.parametrize("router", ["top-k", "switch", "noisy-top-k", "expert-choice", "sigmoid"])
def test_experts_start_as_dense_blocks_do_and_routers_as_their_papers_say(router: str) -> None:
    model = build(moe={**MOE, "num_experts": 8, "num_shared_experts": 2, "router": {"name": router}}, moe_every=2)
    dense, layer = model.layers[0].get_submodule("mlp"), dict(moe_layers(model))["layers.1.mlp"]
    assert layer.shared_experts is not None
    for name, weight in (("in", layer.experts.in_proj), ("down", layer.experts.down_proj)):
        expected = dense.get_parameter("gate_proj.weight" if name == "in" else "down_proj.weight").std()
        torch.testing.assert_close(weight.std(), expected, rtol=0.05, atol=0)
    torch.testing.assert_close(layer.gate.weight.std(), torch.tensor((0.1 / 64) ** 0.5), rtol=0.2, atol=0)
    if router == "noisy-top-k":
        assert not layer.gate.noise_weight.any()


def test_the_seed_fixes_every_weight() -> None:
    first, again, other = build(moe=MOE), build(moe=MOE), build(moe=MOE, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(
        first.state_dict()["layers.2.mlp.gate.weight"], other.state_dict()["layers.2.mlp.gate.weight"]
    )


def test_a_folder_keeps_the_experts_and_their_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    moe = {**MOE, "router": {"name": "sigmoid", "top_k": 1}, "num_shared_experts": 1}
    model = CausalLm(CausalLmConfig(decoder={**SIZES, "name": "qwen3", "moe": moe, "moe_every": 2}, vocab_size=VOCAB))
    save_model(model.eval(), tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, CausalLm)
    assert loaded.config == model.config
    assert loaded.decoder.config.moe == MoeConfig(**moe)
    ids = torch.randint(VOCAB, (2, 9))
    assert torch.equal(loaded(ids), model(ids))


@torch.no_grad()
def test_the_cache_changes_nothing() -> None:
    model = CausalLm(CausalLmConfig(decoder={**SIZES, "name": "llama", "moe": MOE, "moe_every": 2}, vocab_size=VOCAB))
    ids = torch.randint(VOCAB, (2, 12))
    cache, pieces = model.new_cache(2, 12), []
    for piece in (ids[:, :7], *ids[:, 7:].split(1, dim=1)):
        pieces.append(model(piece, cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids))


def test_every_weight_of_a_chosen_expert_gets_a_gradient() -> None:
    model = build(moe={**MOE, "num_experts": 2}, moe_every=2)
    embeds: Tensor = model.embed_tokens(torch.randint(VOCAB, (2, 10)))
    model.logits(model(embeds, torch.arange(10).expand(2, 10))).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_unknown_settings_of_the_experts_are_named_by_their_path() -> None:
    with pytest.raises(InvalidArgumentError, match=r"decoder\.moe\.num_exprts: .* mean 'num_experts'"):
        build(moe={"num_exprts": 4})
    with pytest.raises(InvalidArgumentError, match=r"decoder\.moe\.router\.top_kk: .* mean 'top_k'"):
        build(moe={"router": {"name": "top-k", "top_kk": 4}})
