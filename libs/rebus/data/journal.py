"""What an ingestion has made durable so far, so that after a kill it goes on from there.

An ingestion works in stretches. At the end of each, one object ``<job>/stretches/<number>.json`` appears: where the
sources stand, the counts, the samples left out, and the data files (``staging``) that hold the good ones. It is created
only if absent, so of two processes that both take themselves for the job one is stopped. A stretch that was cut off
has no object, and is read again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rebus.data import staging
from rebus.data.readers.base import Quarantined
from rebus.errors import AbortedError, AlreadyExistsError
from rebus.store import Store
from rebus.store.sealed import seal, unseal

_FOLDER = "stretches"
_REASONS_SHOWN = 3


@dataclass(frozen=True)
class Position:
    """Where an ingestion stands in its sources."""

    # Number of the source, and how many of its items were taken.
    source: int = 0
    items: int = 0
    # The last item's location or id; the same item must stand there when reading goes on.
    last: str = ""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What was read in one go; the counts are those since the beginning."""

    position: Position = Position()
    good: int = 0
    bad: int = 0
    # Whether nothing is left to read.
    is_last: bool = False
    fragments: list[dict[str, Any]] = field(default_factory=list)
    # ``[location, reason]`` of each sample left out.
    quarantined: list[list[str]] = field(default_factory=list)


class Journal:
    """The stretches of one job, in order."""

    def __init__(self, store: Store, job: str, dataset: str) -> None:
        self._store, self._job, self._dataset = store, job, dataset
        self._reset()
        for stretch in self._read():
            self._take(stretch)

    def _reset(self) -> None:
        self.last = Stretch()
        self.count = 0
        self.fragments: list[dict[str, Any]] = []
        # ``location: reason`` of the first samples left out.
        self.first_reasons: list[str] = []

    def append(self, stretch: Stretch) -> None:
        """Makes a stretch durable; ``AbortedError`` if another process did so first."""
        try:
            self._store.create(self._path(self.count + 1), seal(dataclasses.asdict(stretch)))
        except AlreadyExistsError:
            raise AbortedError(f"{self._job}: another process goes on with it") from None
        self._take(stretch)

    def are_stored(self) -> bool:
        """Whether the rows are still there: those of a job that had ended may have been collected as garbage."""
        return staging.are_stored(self._store, self._dataset, self.fragments)

    def ids(self) -> Iterator[str]:
        """The ids of the rows so far, in order."""
        return staging.ids(self._store, self._dataset, self.fragments)

    def quarantined(self) -> Iterator[Quarantined]:
        """The samples left out so far, in order, a stretch in memory at a time."""
        for stretch in self._read():
            yield from (Quarantined(location, reason) for location, reason in stretch.quarantined)

    def close(self, *, keep_rows: bool) -> None:
        """Removes the stretches, the last one first, and the rows unless a version holds them now; it is empty then."""
        for number in range(self.count, 0, -1):
            self._store.delete(self._path(number))
        if not keep_rows:
            staging.discard(self._store, self._dataset, self.fragments)
        self._reset()

    def _read(self) -> Iterator[Stretch]:
        """In order; they are removed from the end, so the first one missing is the end."""
        paths = {info.path for info in self._store.scan(f"{self._job}/{_FOLDER}")}
        number = 1
        while (path := self._path(number)) in paths:
            content = unseal(self._store.get(path), path)
            yield Stretch(**{**content, "position": Position(**content["position"])})
            number += 1

    def _take(self, stretch: Stretch) -> None:
        self.count += 1
        self.last = stretch
        self.fragments += stretch.fragments
        room = _REASONS_SHOWN - len(self.first_reasons)
        self.first_reasons += [": ".join(item) for item in stretch.quarantined[:room]]

    def _path(self, number: int) -> str:
        return f"{self._job}/{_FOLDER}/{number:06d}.json"
