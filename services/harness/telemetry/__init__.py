"""What operators see of a server: metrics, traces, logs."""

from services.harness.telemetry.calls import Call, Calls
from services.harness.telemetry.telemetry import Telemetry, TelemetrySettings

__all__ = ["Call", "Calls", "Telemetry", "TelemetrySettings"]
