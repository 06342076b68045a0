"""A job's event log: numbered from 1 without gaps, append-only, readable from any position."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from google.protobuf import json_format

from rebus.errors import AbortedError, AlreadyExistsError, NotFoundError
from rebus.store.objects import Store
from rebus.store.sealed import seal, unseal
from rebus.v1.common_pb2 import JobEvent

MAX_CHUNK_EVENTS = 1000
_ATTEMPTS = 64
Pair = tuple[str, Mapping[str, Any]]


class EventKind(StrEnum):
    """What an event tells; ``FIELDS`` names the values it must have."""

    # The state changed: ``state`` and ``attempt``; where an attempt ended other than well ``reason`` and ``error``.
    STATE = "state"
    # How far the job is, 0 to 1, and what it does now.
    PROGRESS = "progress"
    # Numbers by name, with ``step`` where the job counts steps.
    METRICS = "metrics"
    # A checkpoint was published.
    CHECKPOINT = "checkpoint"
    # One score of an evaluation.
    SCORE = "score"
    # A message for people.
    LOG = "log"


FIELDS: dict[EventKind, frozenset[str]] = {
    EventKind.STATE: frozenset({"state"}),
    EventKind.PROGRESS: frozenset({"progress", "message"}),
    EventKind.METRICS: frozenset(),
    EventKind.CHECKPOINT: frozenset({"step", "checkpoint"}),
    EventKind.SCORE: frozenset({"benchmark", "metric"}),
    EventKind.LOG: frozenset({"message"}),
}


class EventLog:
    """Events of one job, stored in chunks named by their first number.

    A chunk is created, never changed. Two writers that both believe to be at the end contend for one name; the
    loser reads the winner's chunk and numbers its own events behind it. Since numbers have no gaps, a reader knows
    the name of the next chunk and asks for it alone.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._folder = f"{name}/events"
        self._next: int | None = None

    def append(self, events: Sequence[Pair]) -> None:
        """Appends ``(kind, values)`` pairs in order; they are durable when the call returns."""
        for start in range(0, len(events), MAX_CHUNK_EVENTS):
            self._append_chunk([_message(kind, values) for kind, values in events[start : start + MAX_CHUNK_EVENTS]])

    def append_state(self, values: Mapping[str, Any]) -> bool:
        """Appends a ``state`` event unless the log's last one says the same; returns whether it did.

        Of several callers one appends: whoever loses the contention for the end looks again.
        """
        message = _message(EventKind.STATE, values)
        for _ in range(_ATTEMPTS):
            end = self._end()
            last = self.last_state()
            if last is not None and _same_state(last, message):
                return False
            if self._create(end, [message]):
                return True
        raise AbortedError(f"{self._folder}: other writers won {_ATTEMPTS} times in a row")

    def read(self, after: int = 0) -> Iterator[JobEvent]:
        """Events numbered above ``after``, in order."""
        return self._follow(self.locate(after)[0])

    def read_from(self, first: int) -> Iterator[JobEvent]:
        """Events from number ``first`` on, where a chunk begins with it or none has it yet."""
        return self._follow(self._chunk(first))

    def _follow(self, messages: list[JobEvent]) -> Iterator[JobEvent]:
        while messages:
            yield from messages
            messages = self._chunk(messages[-1].sequence + 1)

    def last_state(self) -> JobEvent | None:
        """The last ``state`` event; found by reading back from the end."""
        for path in reversed(self._paths()):
            for message in reversed(_decode(self._store.get(path), path)):
                if message.kind == EventKind.STATE:
                    return message
        return None

    def _append_chunk(self, messages: list[JobEvent]) -> None:
        for _ in range(_ATTEMPTS):
            first = self._next if self._next is not None else self._end()
            if self._create(first, messages):
                self._next = first + len(messages)
                return
            self._next = None
        raise AbortedError(f"{self._folder}: other writers won {_ATTEMPTS} times in a row")

    def _create(self, first: int, messages: list[JobEvent]) -> bool:
        """Writes a chunk; False if another writer's is there.

        A store may write an object and lose its answer, and a repeat then finds the object there: what tells it from
        another writer's is the random ``writer`` in it.
        """
        for message, sequence in zip(messages, itertools.count(first)):
            message.sequence = sequence
        path, data = self._path(first), _encode(messages)
        try:
            self._store.create(path, data)
        except AlreadyExistsError:
            return self._store.get(path) == data
        return True

    def locate(self, after: int) -> tuple[list[JobEvent], bool]:
        """The events above ``after`` of the chunk that holds the next one, and whether a chunk ends at ``after``."""
        found = self._chunk(after + 1)
        if found or not after:
            return found, True
        paths = [path for path in self._paths(max(after - MAX_CHUNK_EVENTS, 0)) if path <= self._path(after)]
        if not paths:
            return [], False
        messages = _decode(self._store.get(paths[-1]), paths[-1])
        return [message for message in messages if message.sequence > after], messages[-1].sequence == after

    def _chunk(self, first: int) -> list[JobEvent]:
        path = self._path(first)
        try:
            return _decode(self._store.get(path), path)
        except NotFoundError:
            return []

    def _paths(self, above: int = 0) -> list[str]:
        """Chunks whose first number is above ``above``, in order."""
        return [info.path for info in self._store.scan(self._folder, after=self._path(above))]

    def _end(self) -> int:
        paths = self._paths()
        return _decode(self._store.get(paths[-1]), paths[-1])[-1].sequence + 1 if paths else 1

    def _path(self, first: int) -> str:
        return f"{self._folder}/{first:012d}.json"


class EventCursor:
    """Follows a log from a position: each ``read`` returns what is new, and costs one request when nothing is."""

    def __init__(self, store: Store, name: str, after: int = 0) -> None:
        self._log = EventLog(store, name)
        self._aligned = False  # whether a chunk ends at `position`, so that the next one's name is known
        self.position = after

    def read(self) -> list[JobEvent]:
        """Events since the last call, in order."""
        events: list[JobEvent] = []
        if not self._aligned:
            events, self._aligned = self._log.locate(self.position)
        if events or self._aligned:
            self._aligned = True
            events += self._log.read_from((events[-1].sequence if events else self.position) + 1)
        self.position = events[-1].sequence if events else self.position
        return events


def _same_state(one: JobEvent, other: JobEvent) -> bool:
    keys = ("state", "attempt")
    return [one.values.fields[key] for key in keys] == [other.values.fields[key] for key in keys]


def _message(kind: str, values: Mapping[str, Any]) -> JobEvent:
    missing = FIELDS[EventKind(kind)] - values.keys()
    if missing:
        raise ValueError(f"an event of kind {kind!r} has no {', '.join(sorted(missing))}; found {sorted(values)}")
    message = JobEvent(kind=kind)
    message.time.GetCurrentTime()
    message.values.update(dict(values))
    return message


def _encode(messages: Sequence[JobEvent]) -> bytes:
    events = [json_format.MessageToDict(message, preserving_proto_field_name=True) for message in messages]
    return seal({"events": events, "writer": secrets.token_hex(8)})


def _decode(data: bytes, path: str) -> list[JobEvent]:
    return [json_format.ParseDict(item, JobEvent()) for item in unseal(data, path)["events"]]
