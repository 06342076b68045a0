"""How much a server takes on at once. Every bound has a default; a flag or a variable sets another.

``--limit calls.concurrent=16`` (repeatable), or ``REBUS_LIMITS="calls.concurrent=16,max_message_bytes=1048576"``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rebus.config import build
from rebus.errors import invalid

LIMITS_ENV = "REBUS_LIMITS"


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """Bounds of one class of calls."""

    # Calls that run at once, and of one principal.
    concurrent: int
    concurrent_per_principal: int
    # Bytes of the requests of the calls that run, and of one principal's.
    bytes: int = 256 << 20
    bytes_per_principal: int = 128 << 20
    # Calls that wait for a place, first come, first served, and of one principal.
    queued: int = 0
    queued_per_principal: int = 0
    # Longest wait; a call that waited this long is refused.
    wait_seconds: float = 1.0
    # When a refused caller is asked to come again.
    retry_seconds: float = 1.0

    def __post_init__(self) -> None:
        for pair in (("concurrent", 1), ("bytes", 1), ("queued", 0)):
            name, least = pair
            everybody, one = getattr(self, name), getattr(self, f"{name}_per_principal")
            if not least <= one <= everybody:
                raise ValueError(f"expected {least} <= {name}_per_principal <= {name}, found {one} and {everybody}")
        if self.wait_seconds < 0 or self.retry_seconds < 0:
            raise ValueError("expected wait_seconds and retry_seconds of at least 0")


def _calls() -> PoolLimits:
    return PoolLimits(concurrent=64, concurrent_per_principal=32, queued=256, queued_per_principal=128)


def _watches() -> PoolLimits:
    return PoolLimits(concurrent=512, concurrent_per_principal=128)


def _uploads() -> PoolLimits:
    return PoolLimits(concurrent=16, concurrent_per_principal=8, queued=32, queued_per_principal=16, wait_seconds=5.0)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server. Watches and uploads last long, so they have places of their own."""

    calls: PoolLimits = field(default_factory=_calls)
    watches: PoolLimits = field(default_factory=_watches)
    uploads: PoolLimits = field(default_factory=_uploads)
    # Largest request message; what is larger is uploaded in chunks and referred to by name.
    max_message_bytes: int = 8 << 20
    # Largest uploaded object.
    max_upload_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        pools = (self.calls, self.watches, self.uploads)
        if not 1 <= self.max_message_bytes <= min(pool.bytes_per_principal for pool in pools):
            raise ValueError("expected 1 <= max_message_bytes <= bytes_per_principal: a request must fit its pool")
        if self.max_upload_bytes < 1:
            raise ValueError(f"expected max_upload_bytes of at least 1, found {self.max_upload_bytes}")

    @classmethod
    def of(cls, settings: Iterable[str], environment: Mapping[str, str] = os.environ) -> Limits:
        """The defaults, with ``NAME=VALUE`` settings laid over those of ``REBUS_LIMITS``; errors name the setting."""
        values: dict[str, Any] = {}
        for setting in [*environment.get(LIMITS_ENV, "").split(","), *settings]:
            if setting.strip():
                _set(values, setting.strip())
        return build(cls, values, where="limit")


def _set(values: dict[str, Any], setting: str) -> None:
    path, separator, value = setting.partition("=")
    first, *rest = path.split(".")
    defaults = Limits()
    if not separator or len(rest) > 1:
        raise invalid("limit", f"{setting!r}: expected NAME=VALUE, as in calls.concurrent=16")
    if not rest:
        values[first] = value
        return
    pool = getattr(defaults, first, None)
    if not isinstance(pool, PoolLimits):
        raise invalid(f"limit.{first}", "expected calls, watches or uploads")
    known = {entry.name: getattr(pool, entry.name) for entry in fields(pool)}
    values.setdefault(first, known)[rest[0]] = value
