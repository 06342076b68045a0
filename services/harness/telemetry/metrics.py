"""What a server counts and measures, for Prometheus.

Labels take values from fixed sets only (methods of our descriptors, status codes, operations, kinds and states), so
that no caller can make the number of series grow. The names of calls' metrics are those of go-grpc-prometheus, for
which dashboards and alerts exist.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pool
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

UNKNOWN = "unknown"
# Seconds; from a call that only reads memory to one that loads a model.
DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STORE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_CALL_LABELS = ("grpc_type", "grpc_service", "grpc_method")


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._handled = self._counter("grpc_server_handled", "Calls that ended.", *_CALL_LABELS, "grpc_code")
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from a call's arrival to its last response.",
            _CALL_LABELS,
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self._in_flight = self._gauge("grpc_server_in_flight", "Calls that are being answered.", *_CALL_LABELS)
        self.admission_queue_depth = self._gauge("rebus_admission_queue_depth", "Calls that wait for admission.")
        self.jobs = self._gauge("rebus_jobs", "Jobs in the store.", "kind", "state")
        self.event_loop_lag = self._gauge(
            "rebus_event_loop_lag_seconds", "How late the event loop ran a timer at its last check."
        )
        self._store_seconds = Histogram(
            "rebus_store_operation_seconds",
            "Time of the object store's operations.",
            ("operation", "outcome"),
            buckets=STORE_BUCKETS,
            registry=self.registry,
        )

    def method(self, service: str, method: str, kind: str) -> MethodMetrics:
        """The metrics of one method; ask once and keep them, since finding a label's series is not free."""
        labels = (kind, service, method)
        return MethodMetrics(self._handled, self._seconds.labels(*labels), self._in_flight.labels(*labels), labels)

    def observe_store(self, operation: str, outcome: str, seconds: float) -> None:
        """An observer for ``rebus.store.observation``."""
        self._store_seconds.labels(operation, outcome).observe(seconds)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)


class MethodMetrics:
    """Rate, errors and duration of one method."""

    def __init__(self, handled: Counter, seconds: Histogram, in_flight: Gauge, labels: tuple[str, str, str]) -> None:
        self.seconds = seconds
        self.in_flight = in_flight
        self._handled = handled
        self._labels = labels
        self._by_code: dict[grpc.StatusCode, Counter] = {}
        # Absent series break rates: the first error would be no increase.
        self.handled(grpc.StatusCode.OK)

    def handled(self, code: grpc.StatusCode) -> Counter:
        """The counter of calls that ended with ``code``."""
        found = self._by_code.get(code)
        if found is None:
            found = self._by_code[code] = self._handled.labels(*self._labels, code.name)
        return found


def methods_of(services: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """``(service, method, kind)`` of every method of the named gRPC services, as their descriptors say."""
    for name in services:
        for method in descriptor_pool.Default().FindServiceByName(name).methods:
            streams = (method.client_streaming, method.server_streaming)
            yield name, method.name, _KINDS[streams]


_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}
