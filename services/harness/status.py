"""Domain errors as ``google.rpc.Status`` with details that name the bad field."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from rebus.errors import FieldViolation, InvalidArgumentError, RebusError

DOMAIN = "rebus.dev"


def to_status(error: RebusError) -> status_pb2.Status:
    """The status of a domain error: its code is the error's reason; details carry violations and metadata."""
    status = status_pb2.Status(code=code_pb2.Code.Value(error.reason), message=str(error))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details: list[any_pb2.Any] = [_packed(info)]
    if error.violations:
        request = error_details_pb2.BadRequest()
        for violation in error.violations:
            request.field_violations.add(field=violation.field, description=violation.description)
        details.append(_packed(request))
    status.details.extend(details)
    return status


def from_violations(violations: list[FieldViolation]) -> InvalidArgumentError:
    """One error for all fields of a request that break the rules in the proto."""
    message = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return InvalidArgumentError(message, violations=violations)


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
