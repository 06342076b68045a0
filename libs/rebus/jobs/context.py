"""What a job's code sees of the platform: its document, its events, its progress, and whether to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from rebus.errors import CancelledError
from rebus.jobs import status
from rebus.jobs.events import EventKind, EventLog
from rebus.store import Store, documents

M = TypeVar("M", bound=Message)
FLUSH_SECONDS = 0.5


class JobContext:
    """Handed to a job's entry point.

    Events are written in groups, at most ``FLUSH_SECONDS`` late, so that a loop may emit as often as it likes.
    With an ``attempt``, writes raise ``AbortedError`` once another attempt at the job has begun or it has ended: a
    process that was given up for lost and comes back changes nothing.
    """

    def __init__(self, store: Store, name: str, cache_dir: Path, *, attempt: int | None = None) -> None:
        self.store = store
        self.name = name
        self.cache_dir = cache_dir
        self.attempt = attempt
        self._log = EventLog(store, name)
        self._pending: list[tuple[str, Mapping[str, Any]]] = []
        self._progress: tuple[float, str] | None = None
        self._flushed = time.monotonic()
        self._stop = threading.Event()

    def document(self, cls: type[M]) -> M:
        """The job's resource as stored now."""
        return documents.get(self.store, cls, self.name)

    def update(self, cls: type[M], mutate: Callable[[M], None]) -> M:
        """Changes the job's resource by compare-and-swap."""

        def guarded(document: M) -> None:
            if self.attempt is not None:
                status.require_attempt(self.name, status.job_of(document), self.attempt)
            mutate(document)

        return documents.update(self.store, cls, self.name, guarded)

    def emit(self, kind: str, values: Mapping[str, Any]) -> None:
        """Logs an event of a kind of ``EventKind``; ``values`` are JSON scalars, lists or mappings."""
        self._pending.append((kind, values))
        self._flush_if_due()

    def progress(self, fraction: float, message: str = "") -> None:
        """Records how far the job is (0 to 1) and what it does now."""
        self._progress = (fraction, message)
        self._flush_if_due()

    def stop(self) -> None:
        """Asks the job's code to stop at its next check; safe to call from a signal handler."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the job was asked to stop."""
        return self._stop.is_set()

    def check_cancelled(self) -> None:
        """Raises ``CancelledError`` if the job was asked to stop."""
        if self._stop.is_set():
            raise CancelledError(f"{self.name} was cancelled")

    def flush(self) -> None:
        """Makes everything emitted so far durable."""
        pending, self._pending = self._pending, []
        if self._progress is not None:
            fraction, message = self._progress
            self._progress = None
            status.set_progress(self.store, self.name, fraction, message, attempt=self.attempt)
            pending.append((EventKind.PROGRESS, {"progress": fraction, "message": message}))
        self._log.append(pending)
        self._flushed = time.monotonic()

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()
