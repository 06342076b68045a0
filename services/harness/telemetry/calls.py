"""Every call of our own methods as a span and in the metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from rebus import tracing
from services.harness.telemetry.metrics import UNKNOWN, MethodMetrics, Metrics, methods_of

# Codes that mean that the server failed; with the others it did what it should
# (https://opentelemetry.io/docs/specs/semconv/rpc/grpc/).
_SERVER_ERRORS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
# Not counted: probes would drown the rest.
_INFRASTRUCTURE = "/grpc."

_current: ContextVar[Call | None] = ContextVar("call", default=None)


def current_method() -> str:
    """``/rebus.v1.Service/Method`` of the call that this task answers; empty outside a call."""
    call = _current.get()
    return call.path if call is not None else ""


class Calls:
    """All calls of one server."""

    def __init__(self, metrics: Metrics, services: Iterable[str]) -> None:
        self._methods = {
            f"/{service}/{method}": _Method(service, method, metrics.method(service, method, kind))
            for service, method, kind in methods_of(services)
        }
        self._unknown = metrics.method(UNKNOWN, UNKNOWN, UNKNOWN)
        self._unknown.handled[grpc.StatusCode.UNIMPLEMENTED] = 0
        self._exporting = tracing.is_exporting()

    def observes(self, path: str) -> bool:
        """Whether a method's calls are spans and in the metrics."""
        return path in self._methods

    def begin(self, path: str, metadata: Any) -> None:
        """Notes a call's arrival; its span is current for the rest of the task."""
        method = self._methods.get(path)
        # gRPC answers each call in a task of its own, which ends with it: nothing set here needs to be taken back.
        _current.set(None if method is None else Call(path, method, metadata, self._exporting))

    def current(self, context: Any) -> Call:
        """The call that this task answers, which ``begin`` noted, with what gRPC knows of it."""
        call = _current.get()
        assert call is not None
        call.context = context
        return call

    def unknown(self, path: str) -> None:
        """Counts a call of a method that no service has."""
        if not path.startswith(_INFRASTRUCTURE):
            self._unknown.handled[grpc.StatusCode.UNIMPLEMENTED] += 1


class _Method:
    """What all calls of one method share."""

    def __init__(self, service: str, method: str, metrics: MethodMetrics) -> None:
        self.metrics = metrics
        self.span_name = f"{service}/{method}"
        self.attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


def _enter_span(method: _Method, metadata: Any, exporting: bool) -> Span | None:
    """Makes the call's span current for the rest of the task. Where nothing is exported and the caller began no trace,
    the call is a trace of its own, without one."""
    header = ""
    for key, value in metadata or ():
        if key == tracing.HEADER and isinstance(value, str):
            header = value
            break
    if header or exporting:
        parent = tracing.context_of(header) if header else None
        span = tracing.tracer.start_span(method.span_name, parent, SpanKind.SERVER, method.attributes)
        if span.get_span_context().is_valid:
            otel_context.attach(trace.set_span_in_context(span))
            return span
    tracing.begin()
    return None


class Call:
    """One call: its span is current for the rest of the task. As a context manager, it is in flight and then ends.

    A call whose request cannot be read never gets that far, and is not counted.
    """

    def __init__(self, path: str, method: _Method, metadata: Any, exporting: bool) -> None:
        # ``/rebus.v1.Service/Method``.
        self.path = path
        self._metrics = method.metrics
        self._started = time.perf_counter()
        # Of gRPC, once the call has come that far.
        self.context: Any = None
        # What else is done when the call has ended and its response is on its way.
        self.at_end: Callable[[], None] | None = None
        self._span = _enter_span(method, metadata, exporting)

    def __enter__(self) -> Call:
        self._metrics.in_flight += 1
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        seconds = time.perf_counter() - self._started
        if error is None:
            # The caller need not wait for the accounts: they are kept once the response is on its way.
            asyncio.get_running_loop().call_soon(self._ended, grpc.StatusCode.OK, seconds)
        else:  # which may be that the loop is gone
            self._ended(self._code(error), seconds)

    def _ended(self, code: grpc.StatusCode, seconds: float) -> None:
        if self.at_end is not None:
            self.at_end()
        self._metrics.in_flight -= 1
        self._metrics.ended(code, seconds)
        if self._span is not None:
            self._span.set_attribute("rpc.grpc.status_code", code.value[0])
            if code in _SERVER_ERRORS:
                self._span.set_status(Status(StatusCode.ERROR, code.name))
            self._span.end()

    def _code(self, error: BaseException) -> grpc.StatusCode:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            left = self.context.time_remaining()
            passed = left is not None and left <= 0
            return grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED
        code = self.context.code()
        return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
