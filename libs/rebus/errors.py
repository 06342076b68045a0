"""Domain errors. Services turn them into gRPC statuses; the command prints them as one line.

RebusError
├── InvalidArgumentError     a field or a file is wrong; ``violations`` name which
├── NotFoundError            a named resource or object does not exist
├── AlreadyExistsError       a resource of that name exists
├── FailedPreconditionError  the resource's state does not admit the call; do not retry as is
├── AbortedError             a concurrent change won; read again and retry
├── ResourceExhaustedError   a configured bound was reached
├── UnavailableError         a dependency did not answer; retry with backoff
├── DataLossError            stored bytes do not match their manifest
├── UnauthenticatedError     the caller sent no valid credentials
├── PermissionDeniedError    the caller or the configuration forbids it
├── CancelledError           the work was cancelled
└── DeadlineExceededError    the work did not end in time
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldViolation:
    """One bad field: its path (``recipe.model.connector.name``) and what was found and expected."""

    field: str
    description: str


class RebusError(Exception):
    """Base of every expected failure."""

    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        # Set where nothing was done and the same call may come again after this many seconds.
        self.retry_seconds = retry_seconds
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})


class InvalidArgumentError(RebusError):
    """A field or a file is wrong."""

    reason = "INVALID_ARGUMENT"


class NotFoundError(RebusError):
    """A named resource or object does not exist."""

    reason = "NOT_FOUND"


class AlreadyExistsError(RebusError):
    """A resource of that name exists."""

    reason = "ALREADY_EXISTS"


class FailedPreconditionError(RebusError):
    """The resource's state does not admit the call."""

    reason = "FAILED_PRECONDITION"


class AbortedError(RebusError):
    """A concurrent change won; read again and retry."""

    reason = "ABORTED"


class ResourceExhaustedError(RebusError):
    """A configured bound was reached."""

    reason = "RESOURCE_EXHAUSTED"


class UnavailableError(RebusError):
    """A dependency did not answer."""

    reason = "UNAVAILABLE"


class DataLossError(RebusError):
    """Stored bytes do not match their manifest."""

    reason = "DATA_LOSS"


class UnauthenticatedError(RebusError):
    """The caller sent no valid credentials."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(RebusError):
    """The caller or the configuration forbids it."""

    reason = "PERMISSION_DENIED"


class CancelledError(RebusError):
    """The work was cancelled."""

    reason = "CANCELLED"


class DeadlineExceededError(RebusError):
    """The work did not end in time."""

    reason = "DEADLINE_EXCEEDED"


def invalid(field: str, description: str) -> InvalidArgumentError:
    """An ``InvalidArgumentError`` for one field, its message reading ``field: description``."""
    return InvalidArgumentError(f"{field}: {description}", violations=[FieldViolation(field, description)])
