"""The layer: parity with transformers' blocks, with a loop over tokens and with a dense block; capacity."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MixtralConfig, OlmoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from rebus.errors import DataLossError, InvalidArgumentError
from rebus.models.moe import MoeConfig, MoeLayer, moe_layers, peek_routing, take_routing, update_biases
from rebus.models.moe.capacity import capacity, limit
from rebus.models.moe.hf import Family, block_from_hf, block_to_hf, config_from_hf
from rebus.models.moe.huge_pages import empty

KERNELS = ["segments", "grouped"]


def layer(width: int = 16, **settings: Any) -> MoeLayer:
    """A layer with weights large enough that nothing is near 0."""
    built = MoeLayer(MoeConfig(**{"num_experts": 6, "hidden_width": 24, **settings}), width=width)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return built


def token_loop(moe: MoeLayer, x_TD: Tensor) -> Tensor:
    """What the layer should compute with its last routing, token by token and expert by expert."""
    assert moe.routing is not None
    routing = moe.routing.kept()
    rows = [torch.zeros(x_TD.shape[1]) for _ in x_TD]
    for token, expert, weight in zip(routing.tokens_A, routing.experts_A, routing.weights_A, strict=True):
        h = moe.experts.in_proj[expert] @ x_TD[token]
        act = F.gelu(h) if moe.config.activation == "gelu" else F.silu(h.chunk(2)[0]) * h.chunk(2)[1]
        rows[token] = rows[token] + weight * (moe.experts.down_proj[expert] @ act)
    out = torch.stack(rows)
    if moe.shared_experts is not None:
        gate, up = (x_TD @ moe.shared_experts.in_proj.weight.T).chunk(2, dim=-1)
        out = out + (F.silu(gate) * up) @ moe.shared_experts.down_proj.weight.T
    return out


def gradients(out: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a loss that weighs all outputs differently."""
    factors = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    found = torch.autograd.grad((out * factors).sum(), list(inputs.values()), allow_unused=True)
    pairs = zip(inputs.items(), found, strict=True)
    return {name: torch.zeros_like(value) if grad is None else grad for (name, value), grad in pairs}


def hf_block(family: Family, **settings: Any) -> tuple[nn.Module, Any]:
    """A random block of transformers and its config."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_experts_per_tok": 3, **settings}
    if family == "mixtral":
        config = MixtralConfig(num_local_experts=6, **sizes)
        block = MixtralSparseMoeBlock(config)
    else:
        config = OlmoeConfig(num_experts=6, **sizes)
        block = OlmoeSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block, config


@pytest.mark.paper("olmoe")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_tokens", [30, 1])
@pytest.mark.parametrize(("family", "settings"), [("mixtral", {}), ("olmoe", {}), ("olmoe", {"norm_topk_prob": True})])
def test_outputs_and_gradients_match_transformers(
    family: Family, settings: dict[str, Any], num_tokens: int, kernel: Any
) -> None:
    torch.manual_seed(0)
    block, config = hf_block(family, **settings)
    ours = MoeLayer(config_from_hf(config), width=16)
    ours.experts.kernel = kernel
    ours.load_state_dict(block_from_hf(block.state_dict()))
    x = torch.randn(2, num_tokens, 16, requires_grad=True)

    actual, expected = ours(x), block(x)
    torch.testing.assert_close(actual, expected)
    actual_grads = gradients(actual, {"x": x, **dict(ours.named_parameters())})
    expected_grads = gradients(expected, {"x": x, **dict(block.named_parameters())})
    assert actual_grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        torch.testing.assert_close(actual_grads[name], grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_published_names_and_back(family: Family) -> None:
    state = hf_block(family)[0].state_dict()
    published = block_to_hf(state, family)
    assert len(published) == 1 + 3 * 6
    gate, down = ("w1", "w2") if family == "mixtral" else ("gate_proj", "down_proj")
    assert published[f"experts.4.{gate}.weight"].shape == (24, 16)
    assert torch.equal(published[f"experts.4.{down}.weight"], state["experts.down_proj"][4])
    back = block_from_hf(published)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_an_activation_without_a_counterpart_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="hidden_act: is 'gelu'"):
        config_from_hf(MixtralConfig(hidden_act="gelu"))


def test_blocks_with_other_tensors_are_refused() -> None:
    state = hf_block("mixtral")[0].state_dict()
    published = block_to_hf(state, "mixtral")
    del published["experts.3.w2.weight"]
    with pytest.raises(DataLossError, match=r"lacks experts\.3\.w2\.weight"):
        block_from_hf(published)
    with pytest.raises(DataLossError, match="lacks gate.weight"):
        block_from_hf({name: value for name, value in published.items() if name != "gate.weight"})
    with pytest.raises(DataLossError, match=r"unknown shared_experts\.in_proj\.weight"):
        block_to_hf(layer(num_shared_experts=1).state_dict(), "olmoe")


@given(
    num_tokens=st.integers(1, 12),
    num_experts=st.integers(1, 5),
    router=st.sampled_from(
        [
            {"name": "top-k", "top_k": 1},
            {"name": "noisy-top-k", "top_k": 1},
            {"name": "switch"},
            {"name": "expert-choice", "capacity_factor": 1.3},
            {"name": "sigmoid", "top_k": 1},
        ]
    ),
    activation=st.sampled_from(["swiglu", "gelu"]),
    factor=st.sampled_from([0.0, 0.5, 1.0]),
    kernel=st.sampled_from(KERNELS),
)
def test_equals_a_loop_over_tokens(
    num_tokens: int, num_experts: int, router: dict[str, Any], activation: Any, factor: float, kernel: Any
) -> None:
    torch.manual_seed(num_tokens)
    moe = layer(
        8,
        num_experts=num_experts,
        hidden_width=12,
        router=router,
        activation=activation,
        capacity_factor=factor,
        kernel=kernel,
    )
    x = torch.randn(num_tokens, 8, requires_grad=True)
    inputs = {"x": x, **dict(moe.named_parameters())}
    actual = moe(x)
    expected = token_loop(moe, x)
    torch.testing.assert_close(actual, expected)
    expected_grads = gradients(expected, inputs)
    actual_grads = gradients(moe(x), inputs)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(actual_grads[name], grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kernel", KERNELS)
def test_shared_experts_see_every_token(kernel: Any) -> None:
    torch.manual_seed(0)
    moe, x = layer(num_shared_experts=2, kernel=kernel), torch.randn(7, 16)
    torch.testing.assert_close(moe(x), token_loop(moe, x))


@pytest.mark.paper("switch")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("router", ["top-k", "switch"])
def test_a_single_expert_is_a_dense_block(router: str, kernel: Any) -> None:
    torch.manual_seed(0)
    spec = {"name": router, "top_k": 1} if router == "top-k" else {"name": router}
    moe, x = layer(num_experts=1, router=spec, kernel=kernel), torch.randn(3, 5, 16)
    gate, up = (x @ moe.experts.in_proj[0].T).chunk(2, dim=-1)
    torch.testing.assert_close(moe(x), (F.silu(gate) * up) @ moe.experts.down_proj[0].T)


def test_all_experts_chosen_is_their_weighted_mean() -> None:
    torch.manual_seed(0)
    moe, x = layer(router={"name": "top-k", "top_k": 6}), torch.randn(9, 16)
    h = torch.einsum("td,ehd->teh", x, moe.experts.in_proj)
    gate, up = h.chunk(2, dim=-1)
    each = torch.einsum("tef,edf->ted", F.silu(gate) * up, moe.experts.down_proj)
    torch.testing.assert_close(moe(x), torch.einsum("te,ted->td", (x @ moe.gate.weight.T).softmax(-1), each))


def test_many_tokens_of_a_wide_layer_pass_in_several_blocks() -> None:
    """Enough rows that the segments' kernel splits an expert list into blocks, and some experts have none."""
    torch.manual_seed(0)
    segments = layer(128, num_experts=40, hidden_width=96)
    grouped = layer(128, num_experts=40, hidden_width=96, kernel="grouped")
    grouped.load_state_dict(segments.state_dict())
    with torch.no_grad():
        # Without a common direction in x, the sign of a common weight decides nothing; so some experts get no token.
        for moe in (segments, grouped):
            moe.gate.weight[5:9] = -1.0
    x = (torch.randn(2000, 128) * 0.3 + 0.5).requires_grad_()
    outs = {}
    for moe in (segments, grouped):
        out = moe(x)
        outs[moe.config.kernel] = (out, gradients(out, {"x": x, **dict(moe.named_parameters())}))
    assert moe.routing is not None
    assert (moe.routing.counts() == 0).any()
    torch.testing.assert_close(outs["auto"][0], outs["grouped"][0], atol=1e-4, rtol=1e-4)
    for name, grad in outs["grouped"][1].items():
        # Sums of thousands of products in float32, added in another order.
        torch.testing.assert_close(outs["auto"][1][name], grad, atol=1e-2, rtol=1e-4)


@given(
    num_tokens=st.integers(1, 60),
    num_experts=st.integers(2, 8),
    factor=st.floats(0.1, 3),
    priority=st.sampled_from(["order", "score"]),
)
@pytest.mark.paper("vmoe")
def test_capacity_is_never_exceeded_and_never_wasted(
    num_tokens: int, num_experts: int, factor: float, priority: Any
) -> None:
    torch.manual_seed(num_tokens)
    moe = layer(num_experts=num_experts, capacity_factor=factor, priority=priority)
    moe(torch.randn(num_tokens, 16))
    assert moe.routing is not None
    bound = capacity(2 * num_tokens, num_experts, factor)
    kept, wanted = moe.routing.kept().counts(), moe.routing.counts()
    assert torch.equal(kept, wanted.clamp(max=bound))


@pytest.mark.parametrize("priority", ["order", "score"])
@pytest.mark.paper("vmoe")
def test_who_is_dropped(priority: Any) -> None:
    """Against queues filled one by one: all first choices, then all second ones, by place or by score."""
    torch.manual_seed(0)
    moe = layer(num_experts=4, capacity_factor=0.7, priority=priority)
    moe(torch.randn(30, 16))
    assert moe.routing is not None
    routing, bound = moe.routing, capacity(60, 4, 0.7)
    best = routing.scores_TE.max(dim=1).values.tolist()
    tokens = sorted(range(30), key=lambda t: -best[t]) if priority == "score" else range(30)
    room, expected = [bound] * 4, set()
    for rank in (0, 1):
        for token in tokens:
            expert = int(routing.experts_A[2 * token + rank])
            if room[expert]:
                room[expert] -= 1
                expected.add((token, expert))
    kept = routing.kept()
    assert set(zip(kept.tokens_A.tolist(), kept.experts_A.tolist(), strict=True)) == expected
    assert len(expected) < 60


def test_tokens_without_an_expert_pass_by() -> None:
    torch.manual_seed(0)
    moe, x = layer(num_experts=2, router={"name": "top-k", "top_k": 1}, capacity_factor=0.2), torch.randn(20, 16)
    out = moe(x)
    assert moe.routing is not None
    served = moe.routing.kept().tokens_A
    dropped = [token for token in range(20) if token not in served]
    assert len(dropped) == 16
    assert torch.equal(out[dropped], torch.zeros(16, 16))


def test_a_large_capacity_drops_nothing_by_either_priority() -> None:
    torch.manual_seed(0)
    moe, x = layer(), torch.randn(20, 16)
    expected = moe(x)
    for priority in ("order", "score"):
        assert moe.routing is not None
        assert limit(moe.routing, 6.0, priority).kept().weights_A.shape == (40,)
        limited = layer(capacity_factor=6.0, priority=priority)
        limited.load_state_dict(moe.state_dict())
        assert torch.equal(limited(x), expected)


def test_routing_is_taken_once_by_the_layers_name() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer(), nn.Identity(), layer(router={"name": "sigmoid"}))
    assert [name for name, _ in moe_layers(model)] == ["0", "2"]
    model(torch.randn(5, 16))
    peeked = peek_routing(model)
    assert not peeked["0"].logits_TE.requires_grad
    routings = take_routing(model)
    assert torch.equal(peeked["2"].weights_A, routings["2"].weights_A)
    assert list(routings) == ["0", "2"]
    assert routings["0"].num_tokens == 5
    assert take_routing(model) == {} == peek_routing(model)

    update_biases(model, routings)
    bias = model[2].gate.e_score_correction_bias
    counts = routings["2"].counts()
    torch.testing.assert_close(bias, 0.001 * torch.sign(10 / 6 - counts))


def test_copies_carry_no_graph() -> None:
    moe = layer()
    moe(torch.randn(5, 16)).sum().backward()
    assert copy.deepcopy(moe).routing is None
    assert moe.routing is not None


def test_noise_is_the_same_when_a_layer_is_computed_again() -> None:
    """Activation checkpointing runs the forward pass twice; both must route alike."""
    torch.manual_seed(0)
    moe, x = layer(router={"name": "noisy-top-k"}), torch.randn(9, 16, requires_grad=True)
    inputs = {"x": x, **dict(moe.named_parameters())}
    expected = gradients(moe(x), inputs)
    again = gradients(checkpoint(moe, x, use_reentrant=False), inputs)
    assert all(torch.equal(again[name], grad) for name, grad in expected.items())


@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_computes_experts_in_its_dtype(kernel: Any) -> None:
    torch.manual_seed(0)
    moe, x = layer(kernel=kernel), torch.randn(9, 16)
    expected = moe(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = moe(x)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, atol=0.1, rtol=0.1)
    actual.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in moe.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_a_gpu_computes_what_the_cpu_does(factor: float) -> None:
    torch.manual_seed(0)
    moe, x = layer(32, capacity_factor=factor), torch.randn(40, 32).bfloat16().float()
    expected = moe(x)
    expected_grads = gradients(expected, dict(moe.named_parameters()))
    on_gpu = copy.deepcopy(moe).to("cuda", torch.bfloat16)
    # Tokens and router lose nothing on the way, so that both choose alike.
    on_gpu.gate = copy.deepcopy(moe.gate).to("cuda")
    actual = on_gpu(x.to("cuda", torch.bfloat16))
    actual_grads = gradients(actual, dict(on_gpu.named_parameters()))
    # Rounding to 8 bits, in the tokens, the weights and the products.
    torch.testing.assert_close(actual.float().cpu(), expected, atol=0.2, rtol=0.1)
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        torch.testing.assert_close(actual_grads[name].float().cpu(), expected_grads[name], atol=0.5, rtol=0.1)


def test_huge_buffers_are_plain_tensors() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    buffer = empty((1 << 20, 5), like)
    assert (buffer.shape, buffer.dtype) == ((1 << 20, 5), torch.float64)
    buffer.fill_(2)
    assert buffer.sum() == 10 * (1 << 20)
    assert empty((3,), like).shape == (3,)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_experts": 0}, "num_experts=0"),
        ({"hidden_width": 0}, "hidden_width=0"),
        ({"capacity_factor": -1.0}, "capacity_factor=-1.0"),
        ({"num_shared_experts": -1}, "num_shared_experts=-1"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"priority": "luck"}, "priority='luck'"),
        ({"kernel": "magic"}, "kernel='magic'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MoeConfig(**settings)
