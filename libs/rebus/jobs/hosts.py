"""Which machine looks after a job, and whether it still gives signs of life.

A host writes ``hosts/<id>.json`` every few seconds. Others compare what they read with what they read before, by
their own monotonic clock, so that clocks that differ between machines do no harm.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from rebus.config import canonical_json, digest
from rebus.errors import NotFoundError
from rebus.store.objects import Store

# Begins the name of a cluster that answers for its jobs itself: it needs no signs of life, and nobody takes them.
CLUSTER = "cluster:"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = "/proc/self/ns/pid"


def boot_id() -> str:
    """Differs after every start of the machine; empty where the system has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def host_id(cache_dir: Path) -> str:
    """Names what shares process ids and process records: a boot of a machine, a container, a cache folder."""
    namespace = os.stat(_PID_NAMESPACE).st_ino if os.path.exists(_PID_NAMESPACE) else 0
    name = socket.gethostname().lower()
    return f"{name[:64]}-{digest([name, boot_id(), namespace, str(cache_dir.resolve())])[:12]}"


class Heartbeat:
    """Writes a host's signs of life, no more often than three in a lease."""

    def __init__(self, store: Store, host: str, lease_seconds: float) -> None:
        self._store, self._host, self._period = store, host, lease_seconds / 3
        self._last = float("-inf")

    def beat(self) -> None:
        """Writes one if it is due."""
        if time.monotonic() - self._last >= self._period:
            self._store.put(_path(self._host), canonical_json({"host": self._host, "time_ns": time.time_ns()}))
            self._last = time.monotonic()


class HostWatch:
    """Judges other hosts by whether their signs of life change."""

    def __init__(self, store: Store, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._lease, self._clock = store, lease_seconds, clock
        # Host -> its last sign of life and when it was first seen here.
        self._seen: dict[str, tuple[bytes, float]] = {}

    def is_gone(self, host: str) -> bool:
        """Whether nothing changed for the length of a lease; never at the first look, and never for a cluster."""
        if host.startswith(CLUSTER):
            return False
        try:
            sign = self._store.get(_path(host))
        except NotFoundError:
            sign = b""
        now = self._clock()
        before, since = self._seen.get(host, (None, now))
        if before != sign:
            since = now
        self._seen[host] = (sign, since)
        return now - since >= self._lease


def _path(host: str) -> str:
    return f"hosts/{host}.json"
