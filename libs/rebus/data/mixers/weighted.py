"""Fixed weights: MM1's mixture of captions, interleaved documents and text."""

from __future__ import annotations

from collections.abc import Mapping

from rebus.data.mixers.base import Mixture
from rebus.data.mixers.scheduled import ScheduledMixer
from rebus.registry import NoSettings, register


@register("mixer", "weighted", config=NoSettings, paper="mm1")
class WeightedMixer(ScheduledMixer):
    """Draws every source in the exact share that the stage's mixture gives it."""

    def __init__(
        self, config: NoSettings, *, mixture: Mixture, sizes: Mapping[str, int], key: tuple[int, ...] = ()
    ) -> None:
        del config, sizes, key
        super().__init__(mixture)
