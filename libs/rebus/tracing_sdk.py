"""The part of tracing that needs OpenTelemetry's SDK; ``rebus.tracing`` imports it where an export is asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from importlib.metadata import EntryPoint

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

# How long a process that ends waits for a collector that does not answer.
FLUSH_SECONDS = 5.0


def install(exporter: EntryPoint, service: str) -> None:
    """Makes this process record spans and send them in batches; a second call changes nothing."""
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    resource = Resource.create({"process.pid": os.getpid()})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    processor = BatchSpanProcessor(_LateExporter(exporter))
    # Who configures also flushes: gRPC can no longer be imported when the interpreter's exit handlers run.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Sends what was recorded; gives up after ``FLUSH_SECONDS``. The SDK's own limit is not implemented."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        thread = threading.Thread(target=provider.force_flush, name="rebus-flush-spans", daemon=True)
        thread.start()
        thread.join(FLUSH_SECONDS)


class _LateExporter(SpanExporter):
    """Loads the exporter with the first batch: a supervisor forks before that, which gRPC's threads would not bear."""

    def __init__(self, entry_point: EntryPoint) -> None:
        self._entry_point = entry_point
        self._exporter: SpanExporter | None = None
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            exporter = self._exporter = self._exporter or self._entry_point.load()()
        return exporter.export(spans)

    def shutdown(self) -> None:
        if self._exporter is not None:
            self._exporter.shutdown()
