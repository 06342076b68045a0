"""Two mixtures one after the other: general instructions first, then the task's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rebus.data.mixers.base import Mixture, MixtureChange
from rebus.data.mixers.scheduled import ScheduledMixer
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class TwoStageConfig:
    """Where the second stage begins and what it draws."""

    # Samples drawn by the stage's own mixture before.
    first_samples: int
    # Data binding name -> weight from then on; sources not named are drawn no more.
    second: dict[str, float]

    def __post_init__(self) -> None:
        self.change()

    def change(self) -> MixtureChange:
        """The second stage as a change of the mixture; checks the settings."""
        return MixtureChange(from_sample=self.first_samples, mixture=self.second)


@register("mixer", "mmed-ift", config=TwoStageConfig, paper="mmed-ift")
class TwoStageMixer(ScheduledMixer):
    """Draws by the stage's mixture, then by a second one, each source in its exact share."""

    def __init__(
        self, config: TwoStageConfig, *, mixture: Mixture, sizes: Mapping[str, int], key: tuple[int, ...] = ()
    ) -> None:
        del key
        unknown = sorted(config.second.keys() - sizes.keys())
        if unknown:
            raise ValueError(f"second names no data binding: {', '.join(unknown)}; known: {', '.join(sizes)}")
        # The stage's own changes and the second stage in one order.
        changes = sorted([*mixture.changes, config.change()], key=lambda change: change.from_sample)
        super().__init__(Mixture(mixture.weights, changes))
