"""Samples one after the other: the mixer names the source, the source's permuted epochs the row."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from rebus import config as configs
from rebus.data.mixers import Mixer
from rebus.data.stream.shuffle import shuffled_rows
from rebus.data.stream.state import Drawn, StreamState


class SampleStream:
    """Draws samples from where ``state`` stands.

    ``sizes`` holds the rows of each source, ``key`` what decides the order of rows (the run's seed and the stage).
    """

    def __init__(self, mixer: Mixer, sizes: Mapping[str, int], *, key: tuple[int, ...], state: StreamState) -> None:
        self._mixer, self._sizes, self._key = mixer, sizes, key
        self.next_sample = state.sample
        self.taken = dict(state.taken)
        self.mixer_state: Any = configs.build(mixer.state_type, state.mixer, where="stream.mixer")

    @property
    def learns(self) -> bool:
        """Whether the mixer wants the rewards of each step."""
        return self._mixer.learns

    def learn(self, rewards: Mapping[str, float]) -> None:
        """Hands a step's rewards to the mixer."""
        self.mixer_state = self._mixer.learn(rewards, self.mixer_state)

    def take(self, count: int) -> list[Drawn]:
        """The next ``count`` samples."""
        portions, self.mixer_state = self._mixer.draw(self.next_sample, count, self.mixer_state)
        drawn: list[Drawn] = []
        for portion in portions:
            for row in self._rows(portion.source, portion.count):
                number = self.next_sample + len(drawn)
                drawn.append(Drawn(number=number, source=portion.source, row=row, odds=portion.odds))
        self.next_sample += count
        return drawn

    def _rows(self, source: str, count: int) -> list[int]:
        first = self.taken.get(source, 0)
        self.taken[source] = first + count
        key = (*self._key, zlib.crc32(source.encode()))
        return shuffled_rows(range(first, first + count), size=self._sizes[source], key=key).tolist()
