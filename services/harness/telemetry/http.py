"""The HTTP port for machines that look after the server: ``/metrics``, ``/healthz``, ``/readyz``."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from rebus.errors import PermissionDeniedError, RebusError, UnauthenticatedError, UnavailableError
from rebus.v1.options_pb2 import Access
from services.harness.auth import AccessControl

# What each route asks for where the server asks for credentials; probes carry none. Whatever else is asked for needs
# the highest role, as unknown methods do.
OPEN_ROUTES = ("/healthz", "/readyz")
ROLES = {"/metrics": Access.VIEWER}

# A scraper or two and the probes need no more; a client that stays silent is cut off.
MAX_CONNECTIONS = 16
IDLE_SECONDS = 5.0


@dataclass(frozen=True)
class Gate:
    """Who may read: the same access control as that of calls. It belongs to the server's event loop."""

    access: AccessControl
    loop: asyncio.AbstractEventLoop

    def admit(self, path: str, authorization: str | None) -> None:
        """Raises what ``AccessControl.admit`` raises; ``TimeoutError`` where the loop has no time to ask it."""
        metadata = [] if authorization is None else [("authorization", authorization)]
        admitted: Coroutine[Any, Any, None] = self.access.admit(path, metadata)
        asyncio.run_coroutine_threadsafe(admitted, self.loop).result(IDLE_SECONDS)


class MetricsServer:
    """Serves in threads, so that a busy event loop does not hide how busy it is."""

    def __init__(
        self,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        gate: Gate,
        host: str,
        port: int,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Binds; port 0 picks a free one. ``tls`` is asked at each connection. Raises ``UnavailableError`` if the port
        is taken."""
        try:
            self._server = make_server(host, port, _app(registry, ready, gate), _Server, _Handler)
        except OSError as error:
            raise UnavailableError(f"cannot serve metrics on {host}:{port}: {error.strerror or error}") from None
        assert isinstance(self._server, _Server)
        self._server.tls = tls
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="rebus-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _app(registry: CollectorRegistry, ready: Callable[[], bool], gate: Gate) -> Callable[[Any, Any], Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _plain(start_response, "405 Method Not Allowed", "only GET and HEAD\n")
        if path not in OPEN_ROUTES and (status := _refused(gate, path, environ)):
            headers = [("WWW-Authenticate", "Bearer")] if status.startswith("401") else []
            return _plain(start_response, status, f"{status}\n", headers)
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/healthz":
            return _plain(start_response, "200 OK", "ok\n")
        if path == "/readyz":
            is_ready = ready()
            text = "serving\n" if is_ready else "not serving\n"
            return _plain(start_response, "200 OK" if is_ready else "503 Service Unavailable", text)
        return _plain(start_response, "404 Not Found", "there are /metrics, /healthz and /readyz\n")

    return app


def _refused(gate: Gate, path: str, environ: Any) -> str:
    """The status of a request that may not be answered; empty for one that may."""
    try:
        gate.admit(path, environ.get("HTTP_AUTHORIZATION"))
    except UnauthenticatedError:
        return "401 Unauthorized"
    except PermissionDeniedError:
        return "403 Forbidden"
    except (RebusError, TimeoutError):
        return "503 Service Unavailable"
    return ""


def _plain(start_response: Any, status: str, text: str, headers: Iterable[tuple[str, str]] = ()) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
    return [text.encode()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    tls: Callable[[], ssl.SSLContext] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*args, **kwargs)

    def get_request(self) -> tuple[Any, Any]:
        connection, client_address = super().get_request()
        if self.tls is not None:  # the handshake is left to the connection's own thread
            connection = self.tls().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, client_address

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away or stays silent is no news."""


class _Handler(WSGIRequestHandler):
    timeout = IDLE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds; they would fill the log."""
