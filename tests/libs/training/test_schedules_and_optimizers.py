from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rebus.registry import build
from rebus.training.optimizers import MuonConfig, orthogonalize
from rebus.training.schedules import CosineConfig, WsdConfig, cosine, mm1_learning_rate, wsd


@pytest.mark.parametrize(
    ("num_parameters", "rate"),
    [
        (9e6, 6.75e-4),
        (85e6, 2.62e-4),
        (302e6, 1.54e-4),
        (1.2e9, 8.58e-5),
        (3e9, 5.83e-5),
        (7e9, 4.08e-5),
        (30e9, 2.21e-5),
    ],
)
@pytest.mark.paper("mm1")
def test_mm1_learning_rates_of_the_papers_sizes(num_parameters: float, rate: float) -> None:
    assert mm1_learning_rate(num_parameters) == pytest.approx(rate, rel=5e-3)


def test_cosine_by_hand() -> None:
    factor = cosine(CosineConfig(warmup_steps=3, final_factor=0.1))
    assert [factor(step, 8) for step in range(3)] == [0.25, 0.5, 0.75]
    assert factor(3, 8) == 1.0
    assert factor(5, 8) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factor(7, 8) == pytest.approx(0.1)


def test_wsd_by_hand() -> None:
    factor = wsd(WsdConfig(warmup_steps=1, decay_share=0.5, final_factor=0.0))
    assert [factor(step, 6) for step in range(3)] == [0.5, 1.0, 1.0]
    assert factor(3, 6) == pytest.approx(1.0)
    assert factor(4, 6) == pytest.approx(0.5)
    assert factor(5, 6) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_short_stages_stay_within_bounds(name: str, steps: int) -> None:
    factor = build("schedule", {"name": name})
    assert all(0 <= factor(step, steps) <= 1 for step in range(steps))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_directions(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    out = orthogonalize(matrices, iterations=5)
    values = torch.linalg.svdvals(out)
    # The quintic trades exactness for speed: its fixed band is about 0.7 to 1.2.
    assert values.min() > 0.3
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    middle = u.mT @ out @ v.mT
    torch.testing.assert_close(middle, torch.diag_embed(middle.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)


def test_muon_matches_torch_muon() -> None:
    """torch's own iterates in bfloat16 (8 bits of mantissa), ours in float32: the changes agree within some percent."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(12, 20, bias=False), nn.Linear(12, 20, bias=False)
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    settings = {"name": "muon", "matrix_lr": 0.02, "matrix_decay": 0.1}
    (mine,) = build("optimizer", settings, dict(ours.named_parameters()))
    reference = torch.optim.Muon(theirs.parameters(), lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(3):
        x = torch.randn(64, 12)  # full rank: what is 0 in exact arithmetic, bfloat16 would amplify
        for model, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    change, expected = (model.weight.detach() - before for model in (ours, theirs))
    assert (change - expected).norm() < 0.05 * expected.norm()


def test_muon_takes_hidden_matrices_and_leaves_tables_and_vectors_to_adamw() -> None:
    model = nn.ModuleDict({"embed_tokens": nn.Embedding(5, 4), "layer": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    parameters = dict(model.named_parameters())
    muon, adamw = build("optimizer", {"name": "muon"}, parameters)
    of = {id(p): name for name, p in parameters.items()}
    taken = [{of[id(p)] for group in o.param_groups for p in group["params"]} for o in (muon, adamw)]
    assert taken[0] == {"layer.weight"}
    assert taken[1] == set(parameters) - {"layer.weight"}


def test_adamw_decays_matrices_only() -> None:
    model = nn.Linear(3, 3)
    (optimizer,) = build("optimizer", {"name": "adamw", "lr": 0.1, "weight_decay": 0.5}, dict(model.named_parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias, before["bias"])


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="iterations=0"):
        MuonConfig(iterations=0)
    with pytest.raises(ValueError, match="decay_share=2"):
        WsdConfig(decay_share=2)
    with pytest.raises(ValueError, match="num_parameters=0"):
        mm1_learning_rate(0)
