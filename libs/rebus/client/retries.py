"""When and how often a failed call is made again.

Only calls that change nothing, or whose ``request_id`` makes a repeat return the first result, are repeated after
``UNAVAILABLE``; what a server refused before doing any work, and says when to come again, is repeated whatever it is.
Calls are never hedged: a second copy of an expensive call costs more than it saves.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from rebus.errors import RebusError, UnavailableError

T = TypeVar("T")
# Verbs of methods that may be repeated: they change nothing, or change the same thing to the same.
_IDEMPOTENT = ("Get", "List", "Watch", "Embed", "Search", "Generate", "Cancel", "Upload")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter, as in AWS's "Exponential Backoff and Jitter"."""

    # Attempts in all; 1 never repeats.
    attempts: int = 5
    initial_seconds: float = 0.2
    multiplier: float = 2.0
    max_seconds: float = 5.0

    def delay(self, attempt: int, error: RebusError) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (from 1): not less than the server asks for."""
        ceiling = min(self.max_seconds, self.initial_seconds * self.multiplier ** (attempt - 1))
        # Jitter keeps clients apart that failed together; it need not be reproducible.
        jitter = random.random() * ceiling
        return jitter if error.retry_seconds is None else error.retry_seconds + jitter


def is_idempotent(method: str, request: Message | None) -> bool:
    """Whether a call of this method may be made twice."""
    return method.startswith(_IDEMPOTENT) or bool(getattr(request, "request_id", ""))


def is_transient(error: RebusError, *, idempotent: bool) -> bool:
    """Whether the same call may succeed later and does no harm."""
    return error.retry_seconds is not None or (idempotent and isinstance(error, UnavailableError))


def call_with_retries(
    call: Callable[[float], T], policy: RetryPolicy, *, idempotent: bool, timeout: float, sleep: Callable[[float], None]
) -> T:
    """Runs ``call(seconds left)`` until it succeeds, its error is final, or the time or the attempts are used up."""
    deadline = time.monotonic() + timeout
    attempt = 1
    while True:
        try:
            return call(deadline - time.monotonic())
        except RebusError as error:
            delay = policy.delay(attempt, error)
            if attempt >= policy.attempts or not is_transient(error, idempotent=idempotent):
                raise
            if time.monotonic() + delay >= deadline:
                raise
        sleep(delay)
        attempt += 1
