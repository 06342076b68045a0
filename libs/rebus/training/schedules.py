"""Learning-rate schedules by name: each maps a step to a factor of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rebus.registry import register

# (step from 0, steps in all) -> factor
Schedule = Callable[[int, int], float]


@dataclass(frozen=True, kw_only=True)
class CosineConfig:
    """Linear warm-up, then half a cosine."""

    # Steps of linear growth from 0; the step after has the peak rate.
    warmup_steps: int = 20
    # Factor at the end; MM1 ends at a tenth of the peak.
    final_factor: float = 0.1

    def __post_init__(self) -> None:
        _check(self.warmup_steps, self.final_factor)


@register("schedule", "cosine", config=CosineConfig, paper="mm1")
def cosine(config: CosineConfig) -> Schedule:
    """Warm-up, then a cosine from the peak to ``final_factor`` at the last step."""

    def factor(step: int, steps: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        share = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
        return config.final_factor + (1 - config.final_factor) * _half_cosine(share)

    return factor


@dataclass(frozen=True, kw_only=True)
class WsdConfig:
    """Warm-up, stable, decay (arXiv 2404.06395)."""

    warmup_steps: int = 20
    # Share of the steps, at the end, in which the rate falls.
    decay_share: float = 0.4
    # Factor at the end.
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup_steps, self.final_factor)
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share={self.decay_share} is outside 0..1")


@register("schedule", "wsd", config=WsdConfig)
def wsd(config: WsdConfig) -> Schedule:
    """Warm-up, a plateau at the peak, then half a cosine to ``final_factor`` at the last step."""

    def factor(step: int, steps: int) -> float:
        start = steps - max(1, round(config.decay_share * steps))
        warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
        if step < start:
            return warm
        share = (step - start) / max(1, steps - 1 - start)
        return warm * (config.final_factor + (1 - config.final_factor) * _half_cosine(share))

    return factor


def mm1_learning_rate(num_parameters: float) -> float:
    """MM1's peak rate for ``num_parameters`` non-embedding parameters: ``exp(-0.4214 ln N - 0.5535)`` (2403.09611).

    The weight decay that goes with it is a tenth of the rate.
    """
    if num_parameters <= 0:
        raise ValueError(f"num_parameters={num_parameters} must be positive")
    return math.exp(-0.4214 * math.log(num_parameters) - 0.5535)


def _half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def _check(warmup_steps: int, final_factor: float) -> None:
    if warmup_steps < 0 or not 0 <= final_factor <= 1:
        raise ValueError(f"need warmup_steps={warmup_steps} >= 0 and final_factor={final_factor} in 0..1")
