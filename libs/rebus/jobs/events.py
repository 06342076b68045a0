"""A job's event log: numbered from 1 without gaps, append-only, readable from any position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from rebus.errors import AbortedError, AlreadyExistsError
from rebus.store.objects import Store
from rebus.store.sealed import seal, unseal
from rebus.v1.common_pb2 import JobEvent

_ATTEMPTS = 64


class EventLog:
    """Events of one job, stored in chunks named by their first number.

    A chunk is created, never changed. Two writers that both believe to be at the end contend for one name; the
    loser reads the winner's chunk and numbers its own events behind it.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._folder = f"{name}/events"
        self._next: int | None = None

    def append(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Appends ``(kind, values)`` pairs in order; they are durable when the call returns."""
        messages = [_message(kind, values) for kind, values in events]
        if not messages:
            return
        for _ in range(_ATTEMPTS):
            first = self._next if self._next is not None else self._end()
            for offset, message in enumerate(messages):
                message.sequence = first + offset
            try:
                self._store.create(self._path(first), _encode(messages))
            except AlreadyExistsError:
                self._next = None
                continue
            self._next = first + len(messages)
            return
        raise AbortedError(f"{self._folder}: other writers won {_ATTEMPTS} times in a row")

    def read(self, after: int = 0) -> Iterator[JobEvent]:
        """Events numbered above ``after``, in order."""
        for path in self._chunks(after):
            for message in _decode(self._store.get(path), path):
                if message.sequence > after:
                    yield message

    def _chunks(self, after: int) -> list[str]:
        """Chunks that may hold events above ``after``: those that start above it and the one before them."""
        paths = [info.path for info in self._store.list(self._folder)]
        at_or_below = [path for path in paths if path <= self._path(after + 1)]
        return at_or_below[-1:] + paths[len(at_or_below) :]

    def _end(self) -> int:
        paths = [info.path for info in self._store.list(self._folder)]
        return _decode(self._store.get(paths[-1]), paths[-1])[-1].sequence + 1 if paths else 1

    def _path(self, first: int) -> str:
        return f"{self._folder}/{first:012d}.json"


def _message(kind: str, values: Mapping[str, Any]) -> JobEvent:
    message = JobEvent(kind=kind)
    message.time.GetCurrentTime()
    message.values.update(dict(values))
    return message


def _encode(messages: Sequence[JobEvent]) -> bytes:
    return seal({"events": [json_format.MessageToDict(m, preserving_proto_field_name=True) for m in messages]})


def _decode(data: bytes, path: str) -> list[JobEvent]:
    return [json_format.ParseDict(item, JobEvent()) for item in unseal(data, path)["events"]]
