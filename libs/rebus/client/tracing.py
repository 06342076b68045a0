"""Calls as spans; the trace context goes with each as the metadata ``traceparent``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from rebus import tracing


def traced(channel: grpc.Channel) -> grpc.Channel:
    """The channel with a span around every call, and the current trace context in its metadata."""
    return grpc.intercept_channel(channel, _TracingInterceptor())


class _CallDetails(grpc.ClientCallDetails):
    """What gRPC hands to interceptors, with one more pair of metadata."""

    def __init__(self, details: Any, pair: tuple[str, str]) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = (*(details.metadata or ()), pair)
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


class _TracingInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return _call(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return _call(continuation, client_call_details, request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return _call(continuation, client_call_details, request_iterator)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return _call(continuation, client_call_details, request_iterator)


def _call(continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
    """Makes the call inside a span that ends with it, which for a stream is later than the return from here."""
    service, _, method = details.method.lstrip("/").partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    span = tracing.tracer.start_span(f"{service}/{method}", kind=SpanKind.CLIENT, attributes=attributes)
    with trace.use_span(span, end_on_exit=False):
        header = tracing.traceparent()
        if header:
            details = _CallDetails(details, (tracing.HEADER, header))
        call = continuation(details, request)
    if span.is_recording():
        call.add_done_callback(lambda done: _end(span, done))
    return call


def _end(span: Span, call: Any) -> None:
    code: grpc.StatusCode = call.code()
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code is not grpc.StatusCode.OK:
        span.set_status(Status(StatusCode.ERROR, code.name))
    span.end()
