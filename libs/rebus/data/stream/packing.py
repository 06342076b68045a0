"""Which samples share a pack: as full as a bounded look-ahead allows, under limits of tokens and of images.

A pack is a budget, not a sequence of its own: its samples stay documents apart (``rebus.models.packing`` lays them out
so that none attends to another, positions start anew in each, and no label crosses a border).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rebus.data.stream.samples import SampleStream
from rebus.data.stream.state import Drawn
from rebus.errors import invalid

# Samples drawn at once into the buffer.
_DRAW = 16


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """The limits of a pack, and how far the packer looks ahead."""

    max_tokens: int
    # Images (or tiles) of one pack.
    max_images: int = 16
    # A pack is made when as many samples wait; at most 16 more do.
    buffer: int = 256

    def __post_init__(self) -> None:
        if self.max_tokens < 2 or self.max_images < 0 or self.buffer < 1:
            raise ValueError(
                f"max_tokens={self.max_tokens} must be at least 2, max_images={self.max_images} not negative and "
                f"buffer={self.buffer} positive"
            )


@dataclass(frozen=True)
class Size:
    """What a sample takes of a pack."""

    tokens: int
    # Or tiles, where images are split.
    images: int


# The sizes of samples, in their order: a pure function of source and row.
Measure = Callable[[Sequence[Drawn]], Sequence[Size]]


class Packer:
    """Makes packs of a stream's samples, each from what waits in the buffer.

    The oldest sample always goes first, so none waits for ever. Then come the pack's share of the images, so that
    packs and with them ranks hold like numbers of them, and then the largest samples that still fit.
    """

    def __init__(
        self, config: PackConfig, samples: SampleStream, measure: Measure, waiting: Sequence[Drawn] = ()
    ) -> None:
        self._config, self._samples, self._measure = config, samples, measure
        # By number, in order.
        self._waiting: dict[int, tuple[Drawn, Size]] = {}
        if waiting:
            self._add(waiting)

    @property
    def waiting(self) -> tuple[Drawn, ...]:
        """The buffer's content."""
        return tuple(drawn for drawn, _ in self._waiting.values())

    def next_pack(self) -> list[tuple[Drawn, Size]]:
        """The samples of the next pack, in order of their numbers.

        Raises ``InvalidArgumentError`` where a sample alone is over the limits.
        """
        while len(self._waiting) < self._config.buffer:
            self._add(self._samples.take(_DRAW))
        room = _Room(self._config.max_tokens, self._config.max_images)
        images = self._share_of_images()
        entries = list(self._waiting.items())
        largest_first = sorted(entries, key=lambda entry: (-entry[1][1].tokens, entry[0]))
        chosen: dict[int, tuple[Drawn, Size]] = {}
        for number, (drawn, size) in _candidates(entries, largest_first, room, images):
            if number not in chosen and room.admit(size):
                chosen[number] = (drawn, size)
        for number in chosen:
            del self._waiting[number]
        return [chosen[number] for number in sorted(chosen)]

    def _share_of_images(self) -> int:
        """Images of a pack that holds as many for its tokens as the buffer does."""
        sizes = [size for _, size in self._waiting.values()]
        density = sum(size.images for size in sizes) / sum(size.tokens for size in sizes)
        return min(self._config.max_images, math.ceil(self._config.max_tokens * density))

    def _add(self, drawn: Sequence[Drawn]) -> None:
        for sample, size in zip(drawn, self._measure(drawn), strict=True):
            if size.tokens > self._config.max_tokens or size.images > self._config.max_images:
                raise invalid(
                    "pack",
                    f"row {sample.row} of {sample.source!r} has {size.tokens} tokens and {size.images} images, more "
                    f"than max_tokens={self._config.max_tokens} or max_images={self._config.max_images}",
                )
            self._waiting[sample.number] = (sample, size)


class _Room:
    """What is left of a pack."""

    def __init__(self, tokens: int, images: int) -> None:
        self.tokens, self.images = tokens, images

    def admit(self, size: Size) -> bool:
        """Takes the room of a sample, if it fits."""
        fits = size.tokens <= self.tokens and size.images <= self.images
        if fits:
            self.tokens -= size.tokens
            self.images -= size.images
        return fits


_Entry = tuple[int, tuple[Drawn, Size]]


def _candidates(
    oldest_first: Sequence[_Entry], largest_first: Sequence[_Entry], room: _Room, images: int
) -> Iterable[_Entry]:
    """Samples in the order in which a pack is offered them; ``room`` shrinks meanwhile."""
    most = room.images
    yield oldest_first[0]
    for entry in oldest_first[1:]:
        if 0 < entry[1][1].images <= images - (most - room.images):
            yield entry
    yield from largest_first
