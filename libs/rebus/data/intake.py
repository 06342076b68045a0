"""Drains an ingestion's sources, stretch by stretch: good samples into data files, bad ones onto a list."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain, islice

from rebus.data import staging
from rebus.data.ingest_settings import IngestSettings
from rebus.data.journal import Journal, Position, Stretch
from rebus.data.prefetch import ordered_prefetch
from rebus.data.quarantine import printable
from rebus.data.readers.base import Draft, Quarantined, Reader
from rebus.data.sample import Sample
from rebus.data.seen import SeenIds
from rebus.data.tolerance import Tolerance
from rebus.jobs.context import JobContext
from rebus.v1.dataset_pb2 import Ingestion

_REPORT_SECONDS = 1.0
_RUN_ITEMS = 64
_RUN_BYTES = 1 << 20

Item = Sample | Draft | Quarantined
Keyed = tuple[str, Sample | Quarantined]
# An item of a source, with where the source stands behind it.
Read = tuple[Position, Sample | Quarantined]


class SourceChangedError(Exception):
    """A source does not begin with what was read of it before."""


class Intake:
    """Reads on from where ``journal`` ends until nothing is left."""

    def __init__(
        self, ctx: JobContext, ingestion: Ingestion, readers: list[Reader], journal: Journal, settings: IngestSettings
    ) -> None:
        self._ctx, self._readers, self._journal, self._settings = ctx, readers, journal, settings
        self._dataset = ingestion.dataset
        self._tolerance = Tolerance(ingestion)
        self._position = journal.last.position
        self._good, self._bad = journal.last.good, journal.last.bad
        self._quarantined: list[list[str]] = []
        self._error: Exception | None = None
        self._is_last = False
        self._reported = time.monotonic()
        self._items = self._read(self._position)

    def run(self, seen: SeenIds, base: int | None) -> None:
        """Reads everything; ``seen`` holds the ids that are taken, ``base`` is the Lance version to be extended.

        Raises ``InvalidArgumentError`` if a source as a whole is wrong or too many of its samples are bad, and, before
        anything is written, ``SourceChangedError`` if the sources are not what they were. What was read before an
        error of the sources, or before the job was told to stop, is durable.
        """
        with closing(self._items):
            while not self._journal.last.is_last:
                self._stretch(seen, base)
                if self._error is not None:
                    raise self._error
                self._ctx.check_cancelled()
                self._tolerance.check_early(self._good, self._bad, self._journal.first_reasons)
        self._tolerance.check(self._good, self._bad, self._journal.first_reasons)
        self._report(0.9)

    def _stretch(self, seen: SeenIds, base: int | None) -> None:
        """One stretch, made durable unless nothing was read."""
        before, settings = self._position, self._settings
        fragments = staging.stage(
            self._ctx.store,
            self._dataset,
            self._samples(seen),
            base=base,
            batch_rows=settings.batch_rows,
            batch_bytes=settings.batch_bytes,
        )
        if self._position == before and not self._is_last:
            return
        self._journal.append(
            Stretch(
                position=self._position,
                good=self._good,
                bad=self._bad,
                is_last=self._is_last,
                fragments=fragments,
                quarantined=self._quarantined,
            )
        )
        self._quarantined = []

    def _samples(self, seen: SeenIds) -> Iterator[Sample]:
        """The good samples of one stretch; it ends early if the job is to stop, a source fails or too much is bad."""
        settings, began = self._settings, time.monotonic()
        taken = held = 0
        while taken < settings.stretch_samples and held < settings.stretch_bytes and not self._ctx.stopping:
            if time.monotonic() - began >= settings.stretch_seconds or (read := self._next()) is None:
                return
            self._position, item = read
            taken += 1
            if isinstance(item, Sample) and seen.add(item.id):
                self._good += 1
                held += item.num_bytes
                yield item
            else:
                self._leave_out(item)
                if self._tolerance.is_hopeless(self._good, self._bad):
                    return
            self._report_if_due()

    def _leave_out(self, item: Sample | Quarantined) -> None:
        if isinstance(item, Sample):
            item = Quarantined(item.id, "an earlier sample has this id")
        self._bad += 1
        self._quarantined.append([printable(item.location), printable(item.reason)])

    def _next(self) -> Read | None:
        """The next item; None at the end, or where reading failed, which is kept so that the stretch can end."""
        try:
            read = next(self._items, None)
        except Exception as error:
            self._error = error
            return None
        self._is_last = read is None
        return read

    def _read(self, start: Position) -> Generator[Read]:
        """What all sources hold behind ``start``."""
        for source, reader in enumerate(self._readers[start.source :], start=start.source):
            done = start.items if source == start.source else 0
            drafts: Callable[[], Iterable[Item]] | None = getattr(reader, "drafts", None)
            items = iter(drafts() if drafts else reader)
            if done:
                self._skip(items, start)
            ahead = ordered_prefetch(
                _runs(items),
                _finished,
                # What a reader makes by itself gains nothing from threads.
                workers=self._settings.workers if drafts else 0,
                max_bytes=self._settings.ahead_bytes,
                size=_num_bytes,
            )
            for number, (key, item) in enumerate(chain.from_iterable(ahead), start=done + 1):
                yield Position(source, number, key), item

    def _skip(self, items: Iterator[Item], to: Position) -> None:
        """Passes over what was taken before; nothing of it is made or decoded where the reader makes drafts."""
        last = ""
        for number, item in enumerate(islice(items, to.items), start=1):
            self._ctx.check_cancelled()
            last = _key(item) if number == to.items else ""
        if last != to.last:
            raise SourceChangedError

    def _report_if_due(self) -> None:
        """Progress counts sources as equally long; within one it is known only where the reader can tell."""
        if time.monotonic() - self._reported < _REPORT_SECONDS:
            return
        self._reported = time.monotonic()
        total = operator.length_hint(self._readers[self._position.source], 0)
        within = min(self._position.items / total, 1.0) if total else 0.0
        self._report(0.9 * (self._position.source + within) / len(self._readers))

    def _report(self, fraction: float) -> None:
        self._ctx.progress(fraction, f"read {self._good} samples")
        self._ctx.emit("metrics", {"samples": self._good, "quarantined": self._bad})


def _runs(items: Iterable[Item]) -> Iterator[list[Item]]:
    """What a thread takes at once: a draft with the finished items before it, each of which costs less than a turn."""
    run: list[Item] = []
    held = 0
    try:
        for item in items:
            run.append(item)
            held += item.num_bytes if isinstance(item, Sample) else 0
            if isinstance(item, Draft) or len(run) == _RUN_ITEMS or held >= _RUN_BYTES:
                yield run
                run, held = [], 0
    except Exception:
        yield run  # what came before a source broke counts
        raise
    yield run


def _finished(run: list[Item]) -> list[Keyed]:
    """Items with their keys, which are those of the drafts."""
    return [(_key(item), item.finish() if isinstance(item, Draft) else item) for item in run]


def _key(item: Item) -> str:
    return printable(item.id if isinstance(item, Sample) else item.location)


def _num_bytes(run: list[Keyed]) -> int:
    return sum(item.num_bytes for _, item in run if isinstance(item, Sample))
