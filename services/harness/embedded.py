"""Hosts services inside another process, on a loopback port, over the same contracts as everywhere else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from services.harness.auth import Security
from services.harness.limits import Limits
from services.harness.runtime import Runtime
from services.harness.server import NAMES, Host, load
from services.harness.telemetry import Telemetry

START_SECONDS = 60.0


@contextmanager
def hosted(
    store_url: str,
    names: Iterable[str] = NAMES,
    *,
    security: Security | None = None,
    telemetry: Telemetry | None = None,
    limits: Limits | None = None,
    runtime: Runtime | None = None,
) -> Iterator[str]:
    """Runs the named services in a thread and yields their endpoint; they stop when the block ends.

    ``runtime`` takes the place of the store's usual one with ``limits``, e.g. for another executor.
    """

    def make() -> Host:
        used = runtime or Runtime.open(store_url, limits=limits)
        return Host(load(names), used, address="127.0.0.1:0", security=security, telemetry=telemetry)

    with hosting(make) as endpoint:
        yield endpoint


@contextmanager
def hosting(make: Callable[[], Host]) -> Iterator[str]:
    """Runs the host that ``make`` returns in a thread and yields its endpoint; it stops when the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="rebus-services", daemon=True)
    thread.start()
    try:
        host = make()
        port = asyncio.run_coroutine_threadsafe(host.start(), loop).result(START_SECONDS)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            asyncio.run_coroutine_threadsafe(host.stop(grace=1.0), loop).result(START_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
