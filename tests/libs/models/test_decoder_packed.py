"""A flat batch equals its rows one by one, forward and gradient, for every family; FlexAttention equals the grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rebus import registry
from rebus.models.branches import BranchLayout, Window, branch_attention, branch_layout
from rebus.models.decoders.transformer import Decoder
from rebus.models.packed_attention import block_mask, flat_attention, has_kernel, packed_attention

VOCAB = 41
SIZES: dict[str, Any] = {"width": 24, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "hidden_width": 32}
DECODERS = [
    {**SIZES, "name": "llama"},
    {**SIZES, "name": "mistral", "sliding_window": 4},
    {**SIZES, "name": "mistral", "sliding_window": 3, "window_from_layer": 1, "head_dim": 10},
    {**SIZES, "name": "qwen2"},
    {**SIZES, "name": "qwen3", "head_dim": 16},
    {**SIZES, "name": "llama", "rope_scaling": {"kind": "yarn", "factor": 4.0, "original_max_positions": 8}},
    {**SIZES, "name": "gpt2"},
    {**SIZES, "name": "opt"},
    {**SIZES, "name": "llama", "qk_norm": True, "qk_norm_over": "token"},
    {**SIZES, "name": "llama", "moe": {"num_experts": 4, "hidden_width": 20}},
    {**SIZES, "name": "gpt2", "moe": {"num_experts": 5, "hidden_width": 12, "activation": "gelu"}, "moe_every": 2},
]
# Prefix lengths, and branches with their rows; neighbours of one length class share a grid.
PREFIXES, BRANCHES, ROWS = (7, 4, 1), (1, 2, 2, 3, 5, 6), (2, 0, 1, 0, 0, 1)


def layout_and_positions() -> tuple[BranchLayout, Tensor]:
    layout = branch_layout(*(np.array(part, dtype=np.int64) for part in (PREFIXES, BRANCHES, ROWS)))
    runs = [np.arange(length) for length in PREFIXES]
    runs += [PREFIXES[row] + np.arange(length) for length, row in zip(BRANCHES, ROWS, strict=True)]
    return layout, torch.from_numpy(np.concatenate(runs))


def decoder(spec: dict[str, Any]) -> Decoder:
    torch.manual_seed(0)
    built = registry.build("decoder", spec, vocab_size=VOCAB)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built


def row_by_row(model: Decoder, embeds_TD: Tensor) -> Tensor:
    """Hidden states of the flat batch, each branch behind a copy of its prefix."""
    starts = np.cumsum([0, *PREFIXES, *BRANCHES])
    prefixes = [embeds_TD[starts[row] : starts[row + 1]] for row in range(len(PREFIXES))]

    def run(embeds: Tensor) -> Tensor:
        return model(embeds[None], torch.arange(len(embeds))[None])[0]

    hidden = [run(prefix) for prefix in prefixes]
    for index, row in enumerate(ROWS):
        at = len(PREFIXES) + index
        branch = embeds_TD[starts[at] : starts[at + 1]]
        hidden.append(run(torch.cat([prefixes[row], branch]))[len(prefixes[row]) :])
    return torch.cat(hidden)


@pytest.mark.parametrize("spec", DECODERS)
def test_packed_equals_row_by_row(spec: dict[str, Any]) -> None:
    model = decoder(spec)
    layout, positions = layout_and_positions()
    embeds = torch.randn(len(positions), SIZES["width"], requires_grad=True)
    weights = torch.randn(len(positions), SIZES["width"])
    inputs: list[Tensor] = []
    grads = []
    packed, rows = model.forward_packed(embeds, positions, layout, inputs), row_by_row(model, embeds)
    torch.testing.assert_close(packed, rows)
    assert [x.shape for x in inputs] == [embeds.shape] * SIZES["num_layers"]
    for hidden in (packed, rows):
        model.zero_grad()
        embeds.grad = None
        (hidden * weights).mean().backward()
        assert embeds.grad is not None
        grads.append({"embeds": embeds.grad.clone()} | {n: p.grad for n, p in model.named_parameters()})
    for name, gradient in grads[0].items():
        torch.testing.assert_close(gradient, grads[1][name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("spec", DECODERS)
def test_the_cache_left_padding_and_pieces_change_nothing(spec: dict[str, Any]) -> None:
    model = decoder(spec)
    length, pad = 11, 3
    embeds = torch.randn(1, length, SIZES["width"])
    whole = model(embeds, torch.arange(length)[None])
    padded = torch.cat([torch.randn(1, pad, SIZES["width"]), embeds], dim=1)
    order = torch.arange(length + pad)
    positions = (order - pad).clamp_min(0)[None]
    mask = ((order <= order[:, None]) & (order >= pad) | torch.eye(length + pad, dtype=torch.bool))[None]
    cache = model.new_cache(1, length + pad)
    pieces = [
        model(padded[:, a:b], positions[:, a:b], mask[:, a:b, :b], cache)
        for a, b in ((0, 8), (8, 12), (12, 13), (13, 14))
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1)[:, pad:], whole)


# The plain form of FlexAttention warns once that it is the slow one; here only the mask is of interest.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("num_kv_heads", "size"), [(1, 0), (4, 4)])
def test_the_block_sparse_form_equals_the_grids(num_kv_heads: int, size: int) -> None:
    layout, positions = layout_and_positions()
    torch.manual_seed(0)
    window = Window(positions, size) if size else None
    q = torch.randn(len(positions), 4, 8)
    k, v = torch.randn(2, len(positions), num_kv_heads, 8)
    flat = flat_attention(q, k, v, block_mask(layout, window))
    torch.testing.assert_close(flat, branch_attention(q, k, v, layout, window))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention's kernel needs a CUDA device")
@pytest.mark.parametrize("size", [0, 4])
def test_the_kernel_equals_the_grids_forward_and_gradient(size: int) -> None:
    device = torch.device("cuda")
    if not has_kernel(device):
        pytest.skip(f"compute capability {torch.cuda.get_device_capability(device)} is below Ampere's")
    layout, positions = layout_and_positions()
    positions = positions.to(device)
    torch.manual_seed(0)
    parts = [torch.randn(len(positions), heads, 32, device=device, requires_grad=True) for heads in (4, 2, 2)]
    weights = torch.randn(len(positions), 4, 32, device=device)
    window = Window(positions, size) if size else None
    results = []
    for attend in (
        packed_attention(layout, positions, size),
        lambda q, k, v: branch_attention(q, k, v, layout.to(device), window),
    ):
        out = attend(*parts)
        results.append([out, *torch.autograd.grad((out * weights).sum(), parts)])
    for kernel, grids in zip(*results, strict=True):
        torch.testing.assert_close(kernel, grids, atol=2e-3, rtol=2e-3)  # the kernel multiplies in TF32


def test_dynamic_scaling_refuses_a_flat_batch() -> None:
    model = decoder(
        {**SIZES, "name": "llama", "rope_scaling": {"kind": "dynamic", "factor": 2.0, "original_max_positions": 4}}
    )
    layout, positions = layout_and_positions()
    with pytest.raises(ValueError, match="dynamic"):
        model.forward_packed(torch.randn(len(positions), SIZES["width"]), positions, layout)


def test_a_module_of_the_callers_can_stand_as_a_layers_mlp() -> None:
    component, config = registry.settings("decoder", {**SIZES, "name": "llama"})
    del component
    made = {}

    def mlp(layer: int) -> torch.nn.Module:
        made[layer] = torch.nn.Identity() if layer % 2 else torch.nn.Linear(24, 24)
        return made[layer]

    model = Decoder(config, vocab_size=VOCAB, mlp=mlp)
    assert [layer.mlp for layer in model.layers] == [made[0], made[1], made[2]]
    layout, positions = layout_and_positions()
    embeds = torch.randn(len(positions), SIZES["width"])
    torch.testing.assert_close(model.forward_packed(embeds, positions, layout), row_by_row(model, embeds))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"head_dim": 7}, "head size 7 must be even"),
        ({"head_dim": -1}, "head_dim=-1"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"sliding_window": -2}, "sliding_window=-2"),
        ({"position_offset": 2}, "position_offset=2"),
        ({"positions": "learned", "rope_scaling": {"kind": "linear", "factor": 2.0}}, "learned positions"),
        ({"rope_scaling": {"kind": "linear", "factor": 0.5}}, "factor=0.5"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2.0}}, "original_max_positions"),
        ({"rope_scaling": {"kind": "ntk", "factor": 2.0}}, "kind"),
        ({"activation": "mish"}, "activation"),
        ({"qk_norm_over": "layer"}, "qk_norm_over"),
        ({"moe_every": 2}, "moe_every=2 has no meaning without moe"),
        ({"moe_every": 4, "moe": {}}, "moe_every=4 must be within 1 and num_layers=3"),
        ({"moe_every": 0, "moe": {}}, "moe_every=0"),
        ({"moe": {"num_experts": 0}}, "num_experts=0"),
        ({"moe": {"router": {"name": "top-q"}}}, "decoder.moe.router.name: unknown router 'top-q'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    from rebus.errors import InvalidArgumentError

    with pytest.raises(InvalidArgumentError, match=named):
        registry.build("decoder", {**SIZES, "name": "llama", **settings}, vocab_size=VOCAB)


def test_positions_beyond_the_learned_ones_are_named() -> None:
    model = decoder({**SIZES, "name": "gpt2", "max_positions": 8})
    with pytest.raises(ValueError, match="position 8 is beyond the 8"):
        model(torch.randn(1, 9, SIZES["width"]), torch.arange(9)[None])
