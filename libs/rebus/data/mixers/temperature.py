"""Temperature sampling: small sources are drawn more often than their size alone would have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rebus.data.mixers.base import Mixture
from rebus.data.mixers.scheduled import ScheduledMixer
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig:
    """How far from proportional."""

    # Weights are size ** (1 / temperature): 1 draws in proportion to size, large ones draw all sources alike.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1e-3 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be finite and at least 0.001")


@register("mixer", "temperature", config=TemperatureConfig)
class TemperatureMixer(ScheduledMixer):
    """Weights sources by rows ** (1 / temperature), times the weight that the stage's mixture gives them."""

    def __init__(
        self, config: TemperatureConfig, *, mixture: Mixture, sizes: Mapping[str, int], key: tuple[int, ...] = ()
    ) -> None:
        del key
        super().__init__(mixture)
        self._power, self._sizes = 1 / config.temperature, sizes

    def weights(self, sample: int) -> Mapping[str, float]:
        """Relative to the largest source, so that no power overflows."""
        chosen = {name: weight for name, weight in self.mixture.at(sample).items() if weight > 0}
        largest = max(self._sizes[name] for name in chosen)
        return {name: weight * (self._sizes[name] / largest) ** self._power for name, weight in chosen.items()}
