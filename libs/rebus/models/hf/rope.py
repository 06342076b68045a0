"""Rotary settings between ``config.json`` and ours: ``rope_parameters`` (transformers 5) or ``rope_scaling`` (4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rebus import config as configs
from rebus.errors import invalid
from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.rotary import RopeScaling

_FIELD = "config.json.rope_parameters"


@dataclass(frozen=True, kw_only=True)
class RopeFile:
    """The keys of ``rope_parameters``; another one is an error, since it would mean other numbers."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None


def read_rope(values: Mapping[str, Any], *, theta: float | None, max_positions: int) -> dict[str, Any]:
    """Our ``rope_theta`` and ``rope_scaling`` from the file's mapping and its older ``rope_theta``.

    Raises ``InvalidArgumentError`` for a kind that the decoder has not.
    """
    file = configs.build(RopeFile, values, where=_FIELD)
    if file.partial_rotary_factor not in (None, 1.0):
        raise invalid(f"{_FIELD}.partial_rotary_factor", f"{file.partial_rotary_factor} is not supported, only 1.0")
    kind = file.rope_type or file.type or "default"
    return {
        "rope_theta": file.rope_theta or theta or 10_000.0,
        "rope_scaling": None if kind == "default" else _read_scaling(file, kind, max_positions),
    }


def _read_scaling(file: RopeFile, kind: str, max_positions: int) -> RopeScaling:
    # transformers stretches ``dynamic`` from the model's own context.
    origin = (file.original_max_position_embeddings if kind != "dynamic" else None) or max_positions
    values = {
        "kind": kind,
        "factor": file.factor or max_positions / origin,
        "original_max_positions": 0 if kind == "linear" else origin,
    }
    if kind == "yarn":
        values |= {
            "beta_fast": file.beta_fast or 32.0,
            "beta_slow": file.beta_slow or 1.0,
            "truncate": file.truncate is not False,
            "attention_factor": _attention_factor(file, values["factor"]),
        }
    if kind == "llama3":
        values |= {"low_freq_factor": file.low_freq_factor or 1.0, "high_freq_factor": file.high_freq_factor or 4.0}
    return configs.build(RopeScaling, values, where=_FIELD)


def _attention_factor(file: RopeFile, factor: float) -> float:
    if file.attention_factor is not None:
        return file.attention_factor
    if file.mscale and file.mscale_all_dim:
        growth = 0.1 * math.log(factor)
        return (growth * file.mscale + 1) / (growth * file.mscale_all_dim + 1)
    return 0.0


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """The file's mapping; what transformers would fill in by itself is left out."""
    scaling, values = config.rope_scaling, {"rope_theta": config.rope_theta}
    if scaling is None:
        return {"rope_type": "default", **values}
    values |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("yarn", "llama3"):
        values["original_max_position_embeddings"] = scaling.original_max_positions
    if scaling.kind == "yarn":
        values |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.attention_factor:
            values["attention_factor"] = scaling.attention_factor
    if scaling.kind == "llama3":
        values |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    return values
