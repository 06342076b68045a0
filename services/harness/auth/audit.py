"""The audit log: one JSON line for each call that changes something, or that was not allowed to."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from rebus import tracing
from rebus.errors import PermissionDeniedError, RebusError
from rebus.v1.options_pb2 import Access
from services.harness.auth.access import AccessControl
from services.harness.auth.principal import current_principal, role_name

LOGGER = "rebus.audit"
# Names and request ids come from callers, and may not have been checked yet.
MAX_TEXT = 256

log = logging.getLogger(LOGGER)


class AuditLog:
    """Writes who changed what, and how it ended. Of a request, only names and its id; never what it carries."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    def covers(self, method: str) -> bool:
        """Whether a method asks for more than the lowest role: such calls change something."""
        return self._access.role_of(method) > Access.VIEWER

    @contextmanager
    def recorded(self, method: str, request: Message) -> Iterator[Callable[[Message], None]]:
        """Writes a line when the block ends, however it ends; yields what takes the response, which may name the
        resource."""
        resource, code = _text(request, "name", "parent"), "OK"

        def answered(response: Message) -> None:
            nonlocal resource
            resource = _text(response, "name") or resource

        try:
            yield answered
        except Exception as error:
            code = error.reason if isinstance(error, RebusError) else RebusError.reason
            raise
        except BaseException:
            # The caller went away, or its deadline passed.
            code = "CANCELLED"
            raise
        finally:
            _write(method, code, resource, _text(request, "request_id"))

    def refused(self, method: str, error: RebusError) -> None:
        """Writes a line for somebody known who may not call a method that changes something. Calls of unknown people
        change nothing and have no name to write down; they are in the log of calls."""
        if isinstance(error, PermissionDeniedError) and self.covers(method):
            _write(method, error.reason, "", "")


def write_to(path: Path) -> logging.Handler:
    """Sends the audit log to a file of its own, one JSON object a line, and nowhere else. The file may be moved away
    while the server runs; the next line then goes to a new one."""
    handler = WatchedFileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.propagate = False
    return handler


def _write(method: str, code: str, resource: str, request_id: str) -> None:
    principal = current_principal()
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "principal": principal.name,
        "role": role_name(principal.role),
        "method": method,
        "resource": resource,
        "request_id": request_id,
        "code": code,
        "trace_id": tracing.current_trace_id(),
    }
    log.info("%s", json.dumps(line))


def _text(message: Message, *fields: str) -> str:
    """The first of the named text fields that is set."""
    texts = (getattr(message, field, "") for field in fields)
    return next((text[:MAX_TEXT] for text in texts if isinstance(text, str) and text), "")
