"""Every call of our own methods as a span and in the metrics: the outermost interceptor."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
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

_method: ContextVar[str] = ContextVar("method", default="")


def current_method() -> str:
    """``/rebus.v1.Service/Method`` of the call that this task answers; empty outside a call."""
    return _method.get()


def current_trace_id() -> str:
    """The trace id of what runs now, in hex; outside any trace a new one, so that there is always one to show."""
    span_context = trace.get_current_span().get_span_context()
    if not span_context.is_valid:
        span_context = tracing.random_span(sampled=False).get_span_context()
    return trace.format_trace_id(span_context.trace_id)


class TelemetryInterceptor(grpc.aio.ServerInterceptor):
    """Goes first, so that it also sees calls that the others refuse."""

    def __init__(self, metrics: Metrics, services: Iterable[str]) -> None:
        self._methods = {
            f"/{service}/{method}": _Method(service, method, metrics.method(service, method, kind))
            for service, method, kind in methods_of(services)
        }
        self._unknown = metrics.method(UNKNOWN, UNKNOWN, UNKNOWN)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        details: Any = handler_call_details
        method = self._methods.get(details.method)
        if method is None:
            handler = await continuation(handler_call_details)
            if handler is None and not details.method.startswith(_INFRASTRUCTURE):
                self._unknown.handled(grpc.StatusCode.UNIMPLEMENTED).inc()
            return handler
        # gRPC answers each call in a task of its own, which ends with it: nothing set here needs to be taken back.
        call = _Call(method, details.invocation_metadata)
        _method.set(details.method)
        return _observed(await continuation(handler_call_details), call)


class _Method:
    """What all calls of one method share."""

    def __init__(self, service: str, method: str, metrics: MethodMetrics) -> None:
        self.metrics = metrics
        self.span_name = f"{service}/{method}"
        self.attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


class _Call:
    """One call: its span is current for the rest of the task. As a context manager, it is in flight and then ends.

    A call whose request cannot be read never gets that far, and is not counted.
    """

    def __init__(self, method: _Method, metadata: Any) -> None:
        self._metrics = method.metrics
        self._started = time.perf_counter()
        self._context: Any = None
        header = next((value for key, value in metadata or () if key == tracing.HEADER), "")
        self._span: Span = tracing.tracer.start_span(
            method.span_name,
            tracing.context_of(header) if isinstance(header, str) and header else None,
            SpanKind.SERVER,
            method.attributes,
        )
        if not self._span.get_span_context().is_valid:
            self._span = tracing.random_span(sampled=False)  # nothing is exported; logs and jobs share its ids
        otel_context.attach(trace.set_span_in_context(self._span))

    def within(self, context: Any) -> _Call:
        """The call with what gRPC knows of it."""
        self._context = context
        return self

    def __enter__(self) -> None:
        self._metrics.in_flight.inc()

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        code = self._code(error)
        self._metrics.in_flight.dec()
        self._metrics.handled(code).inc()
        self._metrics.seconds.observe(time.perf_counter() - self._started)
        if self._span.is_recording():
            self._span.set_attribute("rpc.grpc.status_code", code.value[0])
            if code in _SERVER_ERRORS:
                self._span.set_status(Status(StatusCode.ERROR, code.name))
        self._span.end()

    def _code(self, error: BaseException | None) -> grpc.StatusCode:
        if error is None:
            return grpc.StatusCode.OK
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            left = self._context.time_remaining()
            passed = left is not None and left <= 0
            return grpc.StatusCode.DEADLINE_EXCEEDED if passed else grpc.StatusCode.CANCELLED
        code = self._context.code()
        return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _observed(handler: Any, call: _Call) -> Any:
    """The handler, whatever its shape, within the call."""
    if handler is None:
        return None
    request, response = ("stream" if s else "unary" for s in (handler.request_streaming, handler.response_streaming))
    behaviour = getattr(handler, f"{request}_{response}")
    wrap = _generator if inspect.isasyncgenfunction(behaviour) else _coroutine
    make = getattr(grpc, f"{request}_{response}_rpc_method_handler")
    return make(wrap(behaviour, call), handler.request_deserializer, handler.response_serializer)


def _coroutine(behaviour: Callable[[Any, Any], Awaitable[Any]], call: _Call) -> Callable[[Any, Any], Awaitable[Any]]:
    async def observed(request: Any, context: Any) -> Any:
        with call.within(context):
            return await behaviour(request, context)

    return observed


def _generator(
    behaviour: Callable[[Any, Any], AsyncIterator[Any]], call: _Call
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def observed(request: Any, context: Any) -> AsyncIterator[Any]:
        with call.within(context):
            async for response in behaviour(request, context):
                yield response

    return observed
