"""The trace context between processes; spans themselves are tested over a real collector in tests/services."""

from __future__ import annotations

import os
import re

import pytest
from opentelemetry import trace

from rebus import tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.ENVIRONMENT, raising=False)


def test_outside_any_trace_there_is_no_context() -> None:
    assert tracing.traceparent() == ""
    with tracing.span("x"):
        assert tracing.traceparent() == ""


@pytest.mark.parametrize("value", ["", "nonsense", PARENT[:-1], PARENT.replace("00-", "ff-")])
def test_a_malformed_context_is_none(value: str) -> None:
    span = trace.get_current_span(tracing.context_of(value))
    assert not span.get_span_context().is_valid


def test_a_process_continues_the_trace_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.ENVIRONMENT, PARENT)
    with tracing.process("rebus-test", "x"):
        assert tracing.traceparent() == PARENT
    assert tracing.traceparent() == ""


def test_a_root_process_begins_a_trace_that_its_children_inherit() -> None:
    with tracing.process("rebus-test", "x", root=True):
        inherited = os.environ[tracing.ENVIRONMENT]
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", inherited)
        assert tracing.traceparent() == inherited
    assert tracing.ENVIRONMENT not in os.environ
    assert tracing.traceparent() == ""


def test_an_exporter_that_is_not_installed_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "unheard")
    assert not tracing.configure("rebus-test")
    assert "the exporter unheard is not installed" in caplog.text
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.configure("rebus-test")


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "none"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, "otlp_proto_grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4317"}, "otlp_proto_grpc"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp_proto_http"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317", "OTEL_TRACES_EXPORTER": "none"}, "none"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
    ],
)
def test_the_environment_chooses_the_exporter(
    variables: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [v for v in os.environ if v.startswith("OTEL_")]:
        monkeypatch.delenv(variable)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert tracing._exporter_name() == name
