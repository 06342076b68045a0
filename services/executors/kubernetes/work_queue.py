"""Names that wait to be looked at: each at most once, some only after a while."""

from __future__ import annotations

import threading
import time


class WorkQueue:
    """A set of names with the time each is due at. Adding one again only ever brings it forward."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._changed = threading.Condition()
        self._closed = False

    def add(self, name: str, delay_seconds: float = 0.0) -> None:
        due = time.monotonic() + delay_seconds
        with self._changed:
            self._due[name] = min(due, self._due.get(name, due))
            self._changed.notify()

    def get(self) -> str | None:
        """Takes the name that is due first, once it is; ``None`` when the queue is closed."""
        with self._changed:
            while not self._closed:
                name = min(self._due, key=self._due.__getitem__, default=None)
                now = time.monotonic()
                if name is not None and self._due[name] <= now:
                    del self._due[name]
                    return name
                self._changed.wait(None if name is None else self._due[name] - now)
            return None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
