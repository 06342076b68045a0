"""Rotary positions (RoFormer, arXiv 2104.09864) and the ways to stretch them over longer texts."""

# Shape suffixes: S tokens, H head dim, E = H / 2 rotary pairs.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_KINDS_WITH_ORIGIN = ("dynamic", "yarn", "llama3")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the frequencies of a rotary decoder are lowered, so that it reads texts longer than it was trained on.

    ``linear`` divides all by ``factor`` (position interpolation, arXiv 2306.15595). ``dynamic`` raises theta with the
    length of the text (NTK-aware scaling). ``yarn`` divides the slow ones only (arXiv 2309.00071); so does ``llama3``
    (arXiv 2407.21783), by wavelength.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: float
    # Tokens of context before the stretching; every kind but ``linear`` needs it.
    original_max_positions: int = 0
    # yarn: pairs that turn more than ``beta_fast`` times within the original context stay, fewer than ``beta_slow``
    # times are divided.
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    # yarn: whether the bounds between the two are rounded to whole pairs.
    truncate: bool = True
    # yarn: factor of cosines and sines; 0 takes the paper's 0.1 ln(factor) + 1.
    attention_factor: float = 0.0
    # llama3: wavelengths above original / low are divided, those below original / high stay.
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ValueError(f"factor={self.factor} must be at least 1")
        if self.kind in _KINDS_WITH_ORIGIN and self.original_max_positions < 1:
            raise ValueError(f"kind={self.kind!r} needs original_max_positions, found {self.original_max_positions}")
        if not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(f"need 0 < beta_slow={self.beta_slow} <= beta_fast={self.beta_fast}")
        if self.attention_factor < 0:
            raise ValueError(f"attention_factor={self.attention_factor} must not be negative")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"need 0 < low_freq_factor={self.low_freq_factor} < high_freq_factor={self.high_freq_factor}"
            )


def rotary_tables(
    positions: Tensor, head_width: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``[..., S, H]`` for ``positions`` ``[..., S]``, in the half-split layout of LLaMA."""
    exponents_E = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width
    if scaling is not None and scaling.kind == "dynamic":
        theta = _dynamic_theta(scaling, theta, head_width, length=int(positions.max()) + 1)
    frequencies_E = theta**-exponents_E
    if scaling is not None:
        frequencies_E = _SCALED[scaling.kind](frequencies_E, scaling, theta)
    angles = positions[..., None].float() * frequencies_E
    angles = torch.cat([angles, angles], dim=-1)
    size = _magnitude(scaling)
    return (angles.cos(), angles.sin()) if size == 1 else (angles.cos() * size, angles.sin() * size)


def rotate(x_BSNH: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Applies the rotary tables ``[B, S, 1, H]`` to ``[B, S, N, H]``."""
    cos, sin = tables
    first, second = x_BSNH.chunk(2, dim=-1)
    return x_BSNH * cos + torch.cat([-second, first], dim=-1) * sin


def _dynamic_theta(scaling: RopeScaling, theta: float, head_width: int, *, length: int) -> float:
    """Theta for a text of ``length`` tokens; the longest of a batch decides for all of it."""
    stretch = scaling.factor * max(length / scaling.original_max_positions, 1.0) - (scaling.factor - 1)
    return theta * stretch ** (head_width / (head_width - 2))


def _linear(frequencies_E: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    del theta
    return frequencies_E / scaling.factor


def _dynamic(frequencies_E: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    del scaling, theta
    return frequencies_E  # theta has been raised


def _yarn(frequencies_E: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    """Equations 17 to 20 of the paper, the ramp laid over the index of a pair."""
    pairs = len(frequencies_E)

    def pair_turning(times: float) -> float:
        return pairs * math.log(scaling.original_max_positions / (times * 2 * math.pi)) / math.log(theta)

    low, high = pair_turning(scaling.beta_fast), pair_turning(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    width = high - low or 0.001  # a step, where both bounds fall on one pair
    index_E = torch.arange(pairs, device=frequencies_E.device, dtype=torch.float32)
    divided_E = ((index_E - low) / width).clamp(0, 1)
    return frequencies_E / scaling.factor * divided_E + frequencies_E * (1 - divided_E)


def _llama3(frequencies_E: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    """Between the two bounds the share that stays grows with the number of turns within the original context."""
    del theta
    turns_E = scaling.original_max_positions * frequencies_E / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_E = ((turns_E - low) / (high - low)).clamp(0, 1)
    return (1 - kept_E) * frequencies_E / scaling.factor + kept_E * frequencies_E


_SCALED = {"linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "llama3": _llama3}


def _magnitude(scaling: RopeScaling | None) -> float:
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
