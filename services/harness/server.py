"""The gRPC server around a set of services: health, reflection, what each call passes, drain on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from rebus import tracing
from rebus.errors import RebusError, UnavailableError
from rebus.memory import keep_buffers, keep_what_is_loaded
from rebus.store.objects import STORE_ENV
from services.executors.choice import EXECUTOR_ENV, EXECUTORS, SETTINGS_ENV
from services.harness.address import join
from services.harness.admission import Admission
from services.harness.auth import Security, audit, roles, security
from services.harness.limits import LIMITS_ENV, Limits
from services.harness.methods import AccessInterceptor, Methods
from services.harness.runtime import Runtime, run
from services.harness.telemetry import Telemetry, TelemetrySettings, http
from services.harness.telemetry.logs import configure_logs
from services.harness.telemetry.telemetry import add_arguments
from services.harness.tls import https_context, server_credentials

DEFAULT_PORT = 8080
# A page of samples carries their images; requests have the smaller bound of ``Limits``.
MAX_RESPONSE_BYTES = 64 << 20
DRAIN_SECONDS = 10.0
MIN_PING_MS = 10_000
NAMES = ("ingest", "training", "retrieval", "generation", "evaluation")

log = logging.getLogger("rebus.server")


@dataclass(frozen=True)
class Service:
    """What ``services/<name>/server.py`` exports as ``SERVICE``: its gRPC services and the jobs it looks after."""

    grpc_names: tuple[str, ...]
    add: Callable[[grpc.aio.Server, Runtime], None]
    job_collections: tuple[str, ...] = ()


def load(names: Iterable[str]) -> list[Service]:
    """The named services; each is imported only when it is hosted."""
    return [importlib.import_module(f"services.{name}.server").SERVICE for name in names]


class Host:
    """One server that hosts some services; use ``start`` then ``stop``, or ``serve`` until a signal."""

    def __init__(
        self,
        services: list[Service],
        runtime: Runtime,
        *,
        address: str,
        security: Security | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._services = services
        self._security = security or Security()
        self._runtime = runtime
        self._address = address
        self._health = HealthServicer()
        self._serving = False
        self.telemetry = telemetry or Telemetry()
        self.port = 0

    async def start(self) -> int:
        """Binds, recovers this host's jobs, and turns healthy; returns the port.

        Raises ``FailedPreconditionError`` where others could call without credentials and nobody said that they may.
        """
        self._security.check_address(self._address)
        access = self._security.access_control(roles.required_roles(self._names()) | http.ROLES)
        admission = Admission(self._runtime.limits)
        self.telemetry.metrics.admission_queue_depth.set_function(lambda: admission.queued)
        calls = self.telemetry.calls(self._names())
        self._server = grpc.aio.server(
            # Where everybody may do all, no call pays for one.
            interceptors=[AccessInterceptor(access, calls)] if access.enabled else [],
            options=[
                ("grpc.max_receive_message_length", self._runtime.limits.max_message_bytes),
                ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
                ("grpc.so_reuseport", 0),
                # Clients ping every 30 s while they watch a job that may be silent for minutes.
                ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MS),
            ],
        )
        methods: Any = Methods(access, admission, calls)
        for service in self._services:
            service.add(methods, self._runtime)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)
        self._server.add_generic_rpc_handlers((methods,))
        if self._security.reflection:
            reflection.enable_server_reflection(
                [*self._names(), health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME],
                self._server,
            )
        try:
            self.port = self._bind()
        except RuntimeError as error:
            raise UnavailableError(f"cannot listen on {self._address}: {error}") from None
        collections = [name for service in self._services for name in service.job_collections]
        self.telemetry.start(self._runtime.store, collections, lambda: self._serving, access, self._https())
        await self._server.start()
        for service in self._services:
            for collection in service.job_collections:
                await run(self._runtime.executor.recover, collection)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return self.port

    def _bind(self) -> int:
        tls = self._security.tls
        if tls is None:
            return self._server.add_insecure_port(self._address)
        # gRPC calls back into the credentials at each handshake, so they must live as long as the server.
        self._credentials = server_credentials(tls, interval=self._security.reload_seconds)
        return self._server.add_secure_port(self._address, self._credentials)

    def _https(self) -> Callable[[], ssl.SSLContext] | None:
        tls = self._security.tls
        return None if tls is None else https_context(tls, interval=self._security.reload_seconds)

    async def stop(self, grace: float = DRAIN_SECONDS) -> None:
        """Turns unhealthy first, so that no new calls come, then lets running calls end within ``grace`` seconds.

        No job starts from here on; those that run go on, unless this process is all that keeps its container up.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.gather(self._server.stop(grace), run(self._runtime.executor.close))
        await self.telemetry.stop()

    async def serve(self) -> None:
        """Runs until SIGTERM or SIGINT, then drains."""
        port = await self.start()
        keep_what_is_loaded()
        log.info("serving %s on port %d, store %s", ", ".join(self._names()), port, self._runtime.store.url)
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await stopping.wait()
        await self.stop()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        self._serving = status == health_pb2.HealthCheckResponse.SERVING
        for name in ("", *self._names()):
            await self._health.set(name, status)

    def _names(self) -> list[str]:
        return [name for service in self._services for name in service.grpc_names]


def main(names: Iterable[str], argv: list[str] | None = None) -> int:
    """Command line of a server process."""
    parser = argparse.ArgumentParser(description=f"Serves {', '.join(names)} over gRPC.")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s)")
    parser.add_argument("--store", default=os.environ.get(STORE_ENV), help=f"store URL (default: ${STORE_ENV})")
    security.add_arguments(parser)
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"another bound, e.g. calls.concurrent=16; repeatable (default: ${LIMITS_ENV}, then services/README.md)",
    )
    add_arguments(parser)
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default=os.environ.get(EXECUTOR_ENV) or EXECUTORS[0],
        help=f"where jobs run (default: ${EXECUTOR_ENV}, or {EXECUTORS[0]})",
    )
    parser.add_argument(
        "--executor-settings",
        type=Path,
        default=os.environ.get(SETTINGS_ENV),
        help=f"YAML settings of the kubernetes executor (default: ${SETTINGS_ENV})",
    )
    args = parser.parse_args(argv)
    if not args.store:
        parser.error(f"no store: pass --store or set {STORE_ENV}")
    try:
        runtime = Runtime.open(args.store, args.executor, args.executor_settings, limits=Limits.of(args.limit))
    except RebusError as error:
        parser.error(str(error))
    keep_buffers()
    configure_logs(args.log_format)
    if args.audit_log:
        audit.write_to(Path(args.audit_log))
    exporting = tracing.configure("rebus-" + "-".join(names))
    try:
        settings = security.from_arguments(args)
        telemetry = Telemetry(TelemetrySettings(metrics_port=args.metrics_port, metrics_host=args.host))
        address = join(args.host, args.port)
        host = Host(load(names), runtime, address=address, security=settings, telemetry=telemetry)
        asyncio.run(host.serve())
    except RebusError as error:
        log.error("%s", error)
        return 1
    finally:
        if exporting:
            tracing.flush()
    return 0
