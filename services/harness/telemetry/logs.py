"""Logs: one JSON object a line for machines, or text for people."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from opentelemetry import trace

from rebus import tracing
from services.harness.auth.principal import current_principal
from services.harness.telemetry.calls import current_method

LogFormat = Literal["json", "text"]
TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure_logs(log_format: LogFormat | None) -> None:
    """Sends this process's logs to standard error; by default as text to a terminal, as JSON to anything else."""
    handler = logging.StreamHandler()
    as_text = sys.stderr.isatty() if log_format is None else log_format == "text"
    handler.setFormatter(logging.Formatter(TEXT) if as_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``logger``, ``message``; with a traceback ``exception``; within a trace ``trace_id`` and
    ``span_id``; within a call ``method`` and ``principal``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        span_context = tracing.current_span().get_span_context()
        if span_context.is_valid:
            line["trace_id"] = trace.format_trace_id(span_context.trace_id)
            line["span_id"] = trace.format_span_id(span_context.span_id)
        if method := current_method():
            line["method"] = method
            line["principal"] = current_principal().name
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
