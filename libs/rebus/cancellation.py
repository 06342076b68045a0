"""When the work of a call has to end: its deadline, and whether its caller has gone.

A server sets the scope of each call it runs; the threads that work for the call see it, stop between two steps once it
ends, and give no call to another service more time than is left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from rebus.errors import CancelledError, DeadlineExceededError


class Scope:
    """One call's time and fate. Thread-safe: a flag that only ever goes up, and a list that only its loop touches."""

    __slots__ = ("_cancelled", "_working", "deadline")

    def __init__(self, deadline: float = math.inf) -> None:
        # On the clock of ``time.monotonic``.
        self.deadline = deadline
        self._cancelled = False
        self._working: list[Future[Any]] = []

    def cancel(self) -> None:
        """Tells the work to end: nobody waits for its result."""
        self._cancelled = True

    def remaining(self) -> float:
        """Seconds left, 0 when the time is over; infinite without a deadline."""
        return max(0.0, self.deadline - time.monotonic())

    def stopped(self) -> bool:
        """Whether the work has to end."""
        return self._cancelled or time.monotonic() >= self.deadline

    def check(self) -> None:
        """Raises ``CancelledError`` or ``DeadlineExceededError`` if the work has to end; to be called between steps."""
        if self._cancelled:
            raise CancelledError("the caller has gone")
        if time.monotonic() >= self.deadline:
            raise DeadlineExceededError("the deadline of the call has passed")

    def abandon(self, work: Future[Any]) -> None:
        """Notes work that still runs in a thread though its caller no longer waits for it."""
        self._working.append(work)

    def end(self) -> bool:
        """Tells the work to end; whether abandoned work still runs."""
        self._cancelled = True
        return bool(self._working) and any(not work.done() for work in self._working)

    def when_idle(self, release: Callable[[], None]) -> None:
        """Calls ``release`` once no abandoned work runs, at once or in the thread whose work ends last."""
        waiting = [work for work in self._working if not work.done()]
        if not waiting:
            release()
            return
        waiting[0].add_done_callback(lambda _: self.when_idle(release))


_current: ContextVar[Scope | None] = ContextVar("rebus_scope", default=None)


def current() -> Scope:
    """The scope of the call that this task or thread works for; outside of calls one of its own without an end."""
    return _current.get() or Scope()


def enter(scope: Scope) -> None:
    """Makes ``scope`` current for the rest of this task and for what it starts."""
    _current.set(scope)
