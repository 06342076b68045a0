"""Rendered scenes with exact answers (see ``rebus.data.scenes``)."""

from __future__ import annotations

from collections.abc import Iterator

from rebus.data.readers.base import Location, Quarantined
from rebus.data.sample import Sample
from rebus.data.scenes import ScenesConfig, generate_samples
from rebus.errors import invalid
from rebus.registry import register


@register("reader", "scenes", config=ScenesConfig)
class ScenesReader:
    """Scenes drawn from random scene graphs, with captions and questions of many kinds."""

    def __init__(self, config: ScenesConfig, location: Location | None = None) -> None:
        if location is not None:
            raise invalid("uri", "the scenes reader makes its samples; leave it empty")
        self._config = config

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        yield from generate_samples(self._config)

    def __length_hint__(self) -> int:
        return self._config.num_scenes + self._config.num_pairs + self._config.num_texts
