"""Traces: spans, the W3C trace context between processes, and the export that the ``OTEL_*`` variables ask for.

Code that makes spans uses OpenTelemetry's API alone and costs next to nothing where nobody configured an export. A
trace crosses a call as the metadata ``traceparent``, and a process as the variable ``TRACEPARENT``
(https://www.w3.org/TR/trace-context/).
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

HEADER = "traceparent"
ENVIRONMENT = "TRACEPARENT"
Attributes = Mapping[str, str | int | float | bool]

log = logging.getLogger("rebus.tracing")
tracer = trace.get_tracer("rebus")
_propagator = TraceContextTextMapPropagator()


@contextmanager
def span(name: str, attributes: Attributes | None = None, *, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
    """A span around a block, child of the current one; an exception that leaves the block is recorded in it."""
    with tracer.start_as_current_span(name, kind=kind, attributes=attributes) as current:
        yield current


class _Trace:
    """A trace that is recorded nowhere and begins when its id is first asked for: most calls end before."""

    span: Span

    def begun(self) -> Span:
        """Its only span; of threads that ask at the same moment, all get the same."""
        return vars(self).get("span") or vars(self).setdefault("span", random_span(sampled=False))


_trace: ContextVar[_Trace | None] = ContextVar("rebus_trace", default=None)


def begin() -> None:
    """Makes the rest of this task, and what it starts, one trace: it shows in logs and goes to the services called."""
    _trace.set(_Trace())


def current_span() -> Span:
    """The span of what runs now; invalid outside any trace."""
    span = trace.get_current_span()
    if span.get_span_context().is_valid or (own := _trace.get()) is None:
        return span
    return own.begun()


def traceparent() -> str:
    """The current trace context as W3C writes it; empty outside any trace."""
    return _written(current_span())


def current_trace_id() -> str:
    """The trace id of what runs now, in hex; outside any trace a new one, so that there is always one to show."""
    span_context = current_span().get_span_context()
    if not span_context.is_valid:
        span_context = random_span(sampled=False).get_span_context()
    return trace.format_trace_id(span_context.trace_id)


def new_traceparent() -> str:
    """The current trace context, or that of a new trace."""
    return traceparent() or _written(random_span(sampled=True))


def _written(span: Span) -> str:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context=trace.set_span_in_context(span))
    return carrier.get(HEADER, "")


def context_of(value: str) -> Context:
    """A context whose current span is the one that ``traceparent`` names; one without a span if that is malformed."""
    return _propagator.extract({HEADER: value}, context=Context())


def random_span(*, sampled: bool) -> Span:
    """A span that is recorded nowhere and begins a trace: it gives ids where no export is configured."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    bits = secrets.randbits(192)
    trace_id, span_id = bits >> 64 | 1, bits & (2**64 - 1) | 1  # never zero, which is no id
    return NonRecordingSpan(SpanContext(trace_id, span_id, is_remote=False, trace_flags=flags))


@contextmanager
def process(
    service: str, name: str, attributes: Attributes | None = None, *, parent: str = "", root: bool = False
) -> Iterator[None]:
    """A span around what a process is for. Child processes inherit the context through the environment.

    The parent is the ``traceparent`` given, else the one in this process's own environment. Without either, a ``root``
    begins a trace of its own even where this process exports nothing, so that what it calls belongs together.
    """
    configured = configure(service)
    inherited = os.environ.get(ENVIRONMENT, "")
    token = otel_context.attach(context_of(parent or inherited))
    try:
        with span(name, attributes) as current:
            if root and not current.get_span_context().is_valid:
                otel_context.attach(trace.set_span_in_context(random_span(sampled=True)))
            os.environ[ENVIRONMENT] = traceparent()
            yield
    finally:
        if inherited:
            os.environ[ENVIRONMENT] = inherited
        else:
            os.environ.pop(ENVIRONMENT, None)
        otel_context.detach(token)
        if configured:
            flush()


def configure(service: str) -> bool:
    """Exports this process's spans as the ``OTEL_*`` variables say; returns whether they ask for it.

    Spans go where ``OTEL_TRACES_EXPORTER`` names (``otlp``, ``console``, ``none``), by default to
    ``OTEL_EXPORTER_OTLP_ENDPOINT`` if that is set and nowhere otherwise. ``OTEL_TRACES_SAMPLER`` and
    ``OTEL_SERVICE_NAME`` (default: ``service``) hold too. A second call changes nothing.
    """
    name = _exporter_name()
    if name == "none":
        return False
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        log.warning("no traces are exported: the exporter %s is not installed (pip install 'rebus[otlp]')", name)
        return False
    from rebus import tracing_sdk  # only here, so that nobody else pays for the SDK

    tracing_sdk.install(found, service)
    return True


def is_exporting() -> bool:
    """Whether this process has an SDK that may export its spans."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def flush() -> None:
    """Sends the spans of a process that ends; call it where ``configure`` returned true."""
    from rebus import tracing_sdk

    tracing_sdk.flush()


def _exporter_name() -> str:
    """The entry point of the exporter that the environment asks for; ``none`` for no export."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return "none"
    endpoint = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_"))
    name = os.environ.get("OTEL_TRACES_EXPORTER", "") or ("otlp" if endpoint else "none")
    if name != "otlp":
        return name
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    return "otlp_proto_http" if protocol.startswith("http") else "otlp_proto_grpc"
