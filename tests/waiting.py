"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.05


def until(condition: Callable[[], T], *, seconds: float = 240.0) -> T:
    """What ``condition`` returns once that is true; ``TimeoutError`` if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"the condition did not come true within {seconds:g} s")
        time.sleep(POLL_SECONDS)
    return found
