"""Where a stream of samples stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One sample of the stream."""

    # Global number, counted from the stage's start.
    number: int
    # Data binding, and the sample's index among the binding's rows.
    source: str
    row: int
    # The probability (or share) with which the source was drawn.
    odds: float


def by_source(drawn: Iterable[Drawn]) -> dict[str, list[Drawn]]:
    """Samples by their source, both in order of appearance: what one read of each source takes."""
    groups: dict[str, list[Drawn]] = {}
    for sample in drawn:
        groups.setdefault(sample.source, []).append(sample)
    return groups


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """All that the rest of a stage's stream follows from, besides recipe, data and seed; plain values throughout."""

    # Numbers of the next step, pack and sample.
    step: int = 0
    pack: int = 0
    sample: int = 0
    # Source -> samples drawn of it so far.
    taken: dict[str, int] = field(default_factory=dict)
    # The packing buffer: samples drawn and not yet packed, in order of their numbers.
    waiting: tuple[Drawn, ...] = ()
    # The mixer's own state.
    mixer: dict[str, Any] = field(default_factory=dict)
