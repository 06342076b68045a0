"""A real HTTP proxy that fails on purpose, to stand between the store and a live S3 server.

The signature of a request covers its ``Host``, which is passed on as it came, so the server behind still accepts it.
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

# What may happen to a request. Those named `lost_*` reach the server: it does the work and the answer is lost.
FAULTS = ("error_500", "error_503", "refused", "stalled", "lost_closed", "lost_500", "lost_stalled", "short")
ANSWERED_LATE = ("lost_closed", "lost_500", "lost_stalled")
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection"}


class FaultyProxy(ThreadingHTTPServer):
    """Asks ``decide(method, path)`` for the fault of each request; ``None`` passes it on unharmed."""

    daemon_threads = True

    def __init__(self, target: str, *, stall_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        parts = urlsplit(target)
        self.target = (parts.hostname or "", parts.port or 80)
        self.stall_s = stall_s
        self.decide: Callable[[str, str], str | None] = lambda method, path: None
        self.injected: list[tuple[str, str]] = []
        # Called once, after a request of `ANSWERED_LATE` was done and before the client learns that its answer is lost.
        self.after: Callable[[], None] | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def plan(self, *faults: str | None, method: str = "") -> None:
        """These faults for the next requests (of ``method``, if given), then none."""
        pending = list(faults)

        def decide(found: str, path: str) -> str | None:
            return pending.pop(0) if pending and found == (method or found) else None

        self.decide = decide

    def at_random(self, seed: int, share: float) -> None:
        """Each request fails with probability ``share``, in a way drawn at random."""
        rng = random.Random(seed)
        self.decide = lambda method, path: rng.choice(FAULTS) if rng.random() < share else None

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is expected here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy
    error_body: ClassVar[bytes] = b"<Error><Code>InternalError</Code><Message>injected</Message></Error>"

    def handle_any(self) -> None:
        body = self._body()
        with self.server.lock:
            fault = self.server.decide(self.command, self.path)
            if fault:
                self.server.injected.append((fault, self.command))
        if fault in ("error_500", "error_503"):
            return self._answer(int(fault[-3:]), {}, self.error_body)
        if fault in ("refused", "stalled"):
            return self._hang_up(self.server.stall_s if fault == "stalled" else 0)
        status, headers, answer = self._forward(body)
        if fault in ANSWERED_LATE and self.server.after is not None:
            self.server.after()
            self.server.after = None
        if fault in ("lost_closed", "lost_stalled"):
            return self._hang_up(self.server.stall_s if fault == "lost_stalled" else 0)
        if fault == "lost_500":
            return self._answer(500, {}, self.error_body)
        return self._answer(status, headers, answer, cut=fault == "short")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server.target, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            headers = {k: v for k, v in response.getheaders() if k.lower() not in HOP_BY_HOP}
            return response.status, headers, response.read()
        except OSError:
            return 502, {}, b""
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        headers = {k: v for k, v in headers.items() if k.lower() != "content-length" or self.command == "HEAD"}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._hang_up(0)

    def _hang_up(self, wait: float) -> None:
        time.sleep(wait)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(target: str, *, stall_s: float) -> Iterator[FaultyProxy]:
    """A proxy before ``target`` until the block ends; a stalled request hangs for ``stall_s`` seconds."""
    server = FaultyProxy(target, stall_s=stall_s)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
