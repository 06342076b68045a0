"""Weights of one mixture-of-experts block of Mixtral or OLMoE, from and to their names in transformers.

transformers 5 holds a block as this package does (``gate.weight``, ``experts.gate_up_proj``, ``experts.down_proj``);
published checkpoints hold every expert's matrices apart. Names are those within a block: without
``model.layers.3.block_sparse_moe.`` (Mixtral) or ``model.layers.3.mlp.`` (OLMoE).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from rebus import config as configs
from rebus import registry
from rebus.errors import DataLossError, invalid
from rebus.models.moe.layer import MoeConfig

Family = Literal["mixtral", "olmoe"]
# Names of an expert's gate, up and down projections in published checkpoints.
_PROJECTIONS: Mapping[str, tuple[str, str, str]] = {
    "mixtral": ("w1", "w3", "w2"),
    "olmoe": ("gate_proj", "up_proj", "down_proj"),
}
_STACKED = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")


def config_from_hf(config: Any) -> MoeConfig:
    """The layer's config for a transformers ``MixtralConfig`` or ``OlmoeConfig``.

    Raises ``InvalidArgumentError`` for an activation other than SiLU.
    """
    if config.hidden_act != "silu":
        raise invalid(
            "hidden_act", f"is {config.hidden_act!r}; the experts of Mixtral and OLMoE are SwiGLU, with 'silu'"
        )
    renormalize = getattr(config, "norm_topk_prob", True)  # Mixtral has no such setting: it always does
    return MoeConfig(
        router={"name": "top-k", "top_k": config.num_experts_per_tok, "renormalize": renormalize},
        num_experts=config.num_local_experts,
        hidden_width=config.intermediate_size,
    )


def config_to_hf(config: MoeConfig) -> dict[str, Any]:
    """What Mixtral's and OLMoE's ``config.json`` say of a layer, under the names of both.

    Raises ``InvalidArgumentError`` for another router than theirs.
    """
    router = spelled_out(config).router
    if router["name"] != "top-k":
        raise invalid("moe.router.name", f"is {router['name']!r}; Mixtral and OLMoE route by 'top-k'")
    return {
        "num_experts_per_tok": router["top_k"],
        "norm_topk_prob": router["renormalize"],
        "num_local_experts": config.num_experts,
        "num_experts": config.num_experts,
        "intermediate_size": config.hidden_width,
    }


def spelled_out(config: MoeConfig) -> MoeConfig:
    """The config with all settings of its router, so that two that mean the same are equal."""
    component, settings = registry.settings("router", config.router, field="moe.router")
    return dataclasses.replace(config, router={"name": component.name, **configs.to_plain(settings)})


def block_from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``MoeLayer`` from that of a block, stacked or as published.

    Raises ``DataLossError`` naming a tensor that is missing or that no block has.
    """
    family = next((f for f, (gate, _, _) in _PROJECTIONS.items() if f"experts.0.{gate}.weight" in state), None)
    if family is None:
        _check_names(state, set(_STACKED))
        return dict(state)
    gate, up, down = _PROJECTIONS[family]
    experts = range(len(state["gate.weight"]) if "gate.weight" in state else 0)
    names = {f"experts.{e}.{name}.weight" for e in experts for name in (gate, up, down)}
    _check_names(state, {"gate.weight", *names})
    pairs = [torch.cat([state[f"experts.{e}.{gate}.weight"], state[f"experts.{e}.{up}.weight"]]) for e in experts]
    return {
        "gate.weight": state["gate.weight"],
        "experts.gate_up_proj": torch.stack(pairs),
        "experts.down_proj": torch.stack([state[f"experts.{e}.{down}.weight"] for e in experts]),
    }


def block_to_hf(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """A layer's state dict under the names of published checkpoints; what stands in memory is shared.

    Raises ``DataLossError`` for a layer that those models do not have (shared experts, other routers, GELU).
    """
    _check_names(state, set(_STACKED))
    gate, up, down = _PROJECTIONS[family]
    published = {"gate.weight": state["gate.weight"]}
    for expert, (gate_up, down_weight) in enumerate(
        zip(state["experts.gate_up_proj"], state["experts.down_proj"], strict=True)
    ):
        gate_weight, up_weight = gate_up.chunk(2)
        for name, weight in ((gate, gate_weight), (up, up_weight), (down, down_weight)):
            published[f"experts.{expert}.{name}.weight"] = weight
    return published


def _check_names(state: Mapping[str, Tensor], expected: set[str]) -> None:
    missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
    problems = [f"lacks {name}" for name in missing] + [f"has an unknown {name}" for name in unknown]
    if problems:
        raise DataLossError(f"mixture-of-experts block: {'; '.join(problems[:5])}")
