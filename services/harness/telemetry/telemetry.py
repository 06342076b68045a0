"""A server's telemetry as a whole: what runs beside the calls, from its start to its end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import ssl
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from rebus.errors import RebusError, invalid
from rebus.store import Store, observation
from services.harness.auth import AccessControl
from services.harness.telemetry.calls import Calls
from services.harness.telemetry.http import Gate, MetricsServer
from services.harness.telemetry.jobs import JobStates
from services.harness.telemetry.metrics import Metrics

METRICS_PORT_ENV = "REBUS_METRICS_PORT"
LOG_FORMAT_ENV = "REBUS_LOG_FORMAT"
LAG_SECONDS = 1.0

log = logging.getLogger("rebus.telemetry")


@dataclass(frozen=True)
class TelemetrySettings:
    """Where metrics are served, and how often what is polled is polled."""

    # None: nowhere. 0 picks a free port.
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    jobs_refresh_seconds: float = 15.0

    def __post_init__(self) -> None:
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65535:
            raise invalid("metrics_port", f"expected 0 to 65535, found {self.metrics_port}")
        if self.jobs_refresh_seconds < 1:
            raise invalid("jobs_refresh_seconds", f"expected at least 1, found {self.jobs_refresh_seconds}")


class Telemetry:
    """Metrics of one server, and what fills them in."""

    def __init__(self, settings: TelemetrySettings | None = None) -> None:
        self.metrics = Metrics()
        self.metrics_port: int | None = None
        self._settings = settings or TelemetrySettings()
        self._stack = ExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    def calls(self, services: Iterable[str]) -> Calls:
        """Observes the methods of the named gRPC services, on behalf of what each call passes."""
        return Calls(self.metrics, services)

    def start(
        self,
        store: Store,
        job_collections: Iterable[str],
        ready: Callable[[], bool],
        access: AccessControl,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Serves the metrics, if the settings name a port, and keeps those up to date that nobody reports."""
        host, port = self._settings.metrics_host, self._settings.metrics_port
        if port is None:
            return
        gate = Gate(access, asyncio.get_running_loop())
        server = MetricsServer(self.metrics.registry, ready, gate, host, port, tls)
        self.metrics_port = server.port
        self._stack.callback(server.close)
        self._stack.enter_context(observation.observing(self.metrics.observe_store))
        states = JobStates(store, job_collections, self.metrics.jobs)
        self._tasks = [asyncio.create_task(self._measure_lag()), asyncio.create_task(self._refresh(states))]

    async def stop(self) -> None:
        """Ends what ``start`` began."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(self._stack.close)

    async def _refresh(self, states: JobStates) -> None:
        while True:
            try:
                await asyncio.to_thread(states.refresh)
            except RebusError as error:
                log.warning("job states are out of date: %s", error)
            except Exception:  # the next time may go well, and the server must end as usual
                log.exception("job states are out of date")
            await asyncio.sleep(self._settings.jobs_refresh_seconds)

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self.metrics.event_loop_lag.set(max(loop.time() - due, 0.0))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a server's command line; the environment gives their defaults."""
    parser.add_argument(
        "--metrics-port",
        default=os.environ.get(METRICS_PORT_ENV) or None,
        type=int,
        help=f"HTTP port of /metrics, /healthz, /readyz; 0 picks a free one (default: ${METRICS_PORT_ENV}, else none)",
    )
    parser.add_argument(
        "--log-format",
        default=os.environ.get(LOG_FORMAT_ENV) or None,
        choices=("json", "text"),
        help=f"of the log on standard error (default: ${LOG_FORMAT_ENV}, else text to a terminal, json elsewhere)",
    )
