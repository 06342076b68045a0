"""What a server counts and measures, for Prometheus.

Labels take values from fixed sets only (methods of our descriptors, status codes, operations, kinds and states), so
that no caller can make the number of series grow. The names of calls' metrics are those of go-grpc-prometheus, for
which dashboards and alerts exist.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

import grpc
from google.protobuf import descriptor_pool
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

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
        self._calls = _CallCollector()
        self.registry.register(self._calls)
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
        """The metrics of one method."""
        return self._calls.add(MethodMetrics((kind, service, method)))

    def observe_store(self, operation: str, outcome: str, seconds: float) -> None:
        """An observer for ``rebus.store.observation``."""
        self._store_seconds.labels(operation, outcome).observe(seconds)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)


class MethodMetrics:
    """Rate, errors and duration of one method.

    Plain numbers that one event loop writes and a scrape reads: a call then costs additions, where the library's own
    metrics cost a lock each.
    """

    def __init__(self, labels: tuple[str, str, str]) -> None:
        self.labels = labels
        # Calls that are being answered.
        self.in_flight = 0
        # Calls that ended, by code. Absent series break rates: the first error would be no increase.
        self.handled: dict[grpc.StatusCode, int] = {grpc.StatusCode.OK: 0}
        # Calls by the bucket that their time falls into, the last one without bound; and the sum of their times.
        self.buckets = [0] * (len(DURATION_BUCKETS) + 1)
        self.seconds = 0.0

    def ended(self, code: grpc.StatusCode, seconds: float) -> None:
        """Counts a call that ended after some seconds."""
        self.handled[code] = self.handled.get(code, 0) + 1
        self.buckets[bisect_left(DURATION_BUCKETS, seconds)] += 1
        self.seconds += seconds


class _CallCollector(Collector):
    """Tells a scrape of all methods."""

    def __init__(self) -> None:
        self._methods: list[MethodMetrics] = []

    def add(self, method: MethodMetrics) -> MethodMetrics:
        self._methods.append(method)
        return method

    def collect(self) -> Iterator[Metric]:
        handled = CounterMetricFamily("grpc_server_handled", "Calls that ended.", labels=(*_CALL_LABELS, "grpc_code"))
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds", "Time from a call's arrival to its last response.", labels=_CALL_LABELS
        )
        in_flight = GaugeMetricFamily("grpc_server_in_flight", "Calls that are being answered.", labels=_CALL_LABELS)
        bounds = [*map(floatToGoString, (*DURATION_BUCKETS, float("inf")))]
        for method in self._methods:
            for code, count in dict(method.handled).items():
                handled.add_metric((*method.labels, code.name), count)
            totals = accumulate(list(method.buckets))
            seconds.add_metric(method.labels, list(zip(bounds, totals, strict=True)), method.seconds)
            in_flight.add_metric(method.labels, method.in_flight)
        yield from (handled, seconds, in_flight)


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
