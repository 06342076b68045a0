"""What a mixer is, and the weights that a stage gives it."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class MixtureChange:
    """Other weights from a sample on. A source that had none before is thereby appended."""

    # Global number of the first sample drawn by the new weights, counted from the stage's start.
    from_sample: int
    # Data binding name -> weight; takes the place of all weights before.
    mixture: dict[str, float]

    def __post_init__(self) -> None:
        if self.from_sample < 1:
            raise ValueError(f"from_sample={self.from_sample} must be at least 1")
        check_weights(self.mixture)


@dataclass(frozen=True)
class Mixture:
    """The weights of a stage's sources, and how they change on the way."""

    weights: Mapping[str, float]
    # In ascending order of ``from_sample``.
    changes: Sequence[MixtureChange] = field(default=())

    def __post_init__(self) -> None:
        check_weights(self.weights)
        check_order(self.changes)

    @property
    def boundaries(self) -> list[int]:
        """Numbers of the samples from which on other weights hold."""
        return [change.from_sample for change in self.changes]

    @property
    def sources(self) -> list[str]:
        """Every source that ever has a weight, in order of appearance."""
        named = [self.weights, *(change.mixture for change in self.changes)]
        return list(dict.fromkeys(name for weights in named for name, weight in weights.items() if weight > 0))

    def at(self, sample: int) -> Mapping[str, float]:
        """The weights by which sample ``sample`` is drawn."""
        passed = bisect.bisect_right(self.boundaries, sample)
        return self.changes[passed - 1].mixture if passed else self.weights


@dataclass(frozen=True)
class Portion:
    """Neighbouring samples of one source."""

    source: str
    count: int
    # The probability (or share) with which the source was drawn.
    odds: float


class Mixer(Protocol):
    """Built as ``mixer(config, mixture=..., sizes=..., key=...)``: the stage's weights, rows of each source, seed.

    A draw is a pure function of the arguments, the seed and the state, so that a resumed run draws what an
    uninterrupted one would. The state is a dataclass of plain values, ``state_type()`` at the start.
    """

    # Whether ``learn`` does anything.
    learns: bool
    state_type: type

    def draw(self, start: int, count: int, state: Any) -> tuple[list[Portion], Any]:
        """Where samples ``start .. start + count - 1`` come from, in order, and the state after them."""
        ...

    def learn(self, rewards: Mapping[str, float], state: Any) -> Any:
        """The state that knows a step's rewards (see ``mixers.odm.rewards``); absent sources gave nothing."""
        ...


def check_weights(weights: Mapping[str, float]) -> None:
    """``ValueError`` unless the weights can be normalised."""
    if not weights or min(weights.values()) < 0 or not sum(weights.values()) > 0:
        raise ValueError(f"mixture weights must be >= 0 and not all 0, got {dict(weights)}")


def check_order(changes: Sequence[MixtureChange]) -> None:
    """``ValueError`` unless each change comes later than the one before."""
    numbers = [change.from_sample for change in changes]
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise ValueError(f"mixture changes must have ascending from_sample, got {numbers}")


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Shares that sum to 1; sources of weight 0 are left out."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight > 0}


def pieces(start: int, stop: int, boundaries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The samples ``start .. stop - 1`` cut at the ascending ``boundaries``, as ``(first, stop)``."""
    inner = boundaries[bisect.bisect_right(boundaries, start) : bisect.bisect_left(boundaries, stop)]
    yield from pairwise([start, *inner, stop])
