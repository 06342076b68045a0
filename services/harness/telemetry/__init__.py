"""What operators see of a server: metrics, traces, logs."""

from services.harness.telemetry.calls import TelemetryInterceptor, current_trace_id
from services.harness.telemetry.telemetry import Telemetry, TelemetrySettings

__all__ = ["Telemetry", "TelemetryInterceptor", "TelemetrySettings", "current_trace_id"]
