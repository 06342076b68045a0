"""The stream cut into steps of a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rebus.config import to_plain
from rebus.data.stream.packing import Measure, PackConfig, Packer, Size
from rebus.data.stream.samples import SampleStream
from rebus.data.stream.state import Drawn, StreamState

# Step ``s`` is drawn knowing the rewards of steps up to ``s - FEEDBACK_LAG``: while a step trains, the next ones are
# already being prepared, and what a step draws must not depend on how many.
FEEDBACK_LAG = 4


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Samples that share the limits of a pack; without packing, a single sample."""

    # Global number, counted from the stage's start.
    number: int
    samples: tuple[Drawn, ...]
    # Of all samples together; without packing they are not measured, and a sample counts as one token.
    size: Size


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step trains on, over all ranks."""

    packs: tuple[Pack, ...]
    # From which the next step follows.
    state: StreamState

    @property
    def samples(self) -> list[Drawn]:
        """The samples of all packs, pack by pack."""
        return [sample for pack in self.packs for sample in pack.samples]


class StepStream:
    """Steps of ``batch_size`` packs (or samples, without ``pack``) from where ``state`` stands, without end.

    ``measure`` gives sizes for packing. ``rewards(step)`` gives what a step's losses were worth, waiting for it if
    need be; it is asked only by mixers that learn.
    """

    def __init__(
        self,
        samples: SampleStream,
        *,
        batch_size: int,
        state: StreamState,
        pack: PackConfig | None = None,
        measure: Measure | None = None,
        rewards: Callable[[int], Mapping[str, float]] | None = None,
    ) -> None:
        self._samples, self._batch_size, self._rewards = samples, batch_size, rewards
        self._packer: Packer | None = None
        if pack is not None:
            if measure is None:
                raise ValueError("packing needs the sizes of samples")
            self._packer = Packer(pack, samples, measure, state.waiting)
        self._step, self._pack = state.step, state.pack

    def __iter__(self) -> Iterator[Step]:
        while True:
            if self._samples.learns and self._step >= FEEDBACK_LAG:
                assert self._rewards is not None, "a mixer that learns needs the rewards of steps"
                self._samples.learn(self._rewards(self._step - FEEDBACK_LAG))
            packs = tuple(self._packs())
            self._step += 1
            yield Step(packs=packs, state=self._state())

    def _packs(self) -> Iterator[Pack]:
        for members in self._members():
            size = Size(sum(size.tokens for _, size in members), sum(size.images for _, size in members))
            yield Pack(number=self._pack, samples=tuple(drawn for drawn, _ in members), size=size)
            self._pack += 1

    def _members(self) -> list[list[tuple[Drawn, Size]]]:
        if self._packer is None:
            return [[(drawn, Size(1, 0))] for drawn in self._samples.take(self._batch_size)]
        return [self._packer.next_pack() for _ in range(self._batch_size)]

    def _state(self) -> StreamState:
        return StreamState(
            step=self._step,
            pack=self._pack,
            sample=self._samples.next_sample,
            taken=dict(self._samples.taken),
            waiting=self._packer.waiting if self._packer else (),
            mixer=to_plain(self._samples.mixer_state),
        )
