"""Domain errors to ``google.rpc.Status`` and back, with details that name the bad field and when to come again."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from rebus.errors import FieldViolation, RebusError

DOMAIN = "rebus.dev"
_BY_REASON = {cls.reason: cls for cls in RebusError.__subclasses__()}


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
    if error.retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(1000 * error.retry_seconds))
        details.append(_packed(retry))
    status.details.extend(details)
    return status


def from_status(status: status_pb2.Status) -> RebusError:
    """The domain error of a status, with its field violations and its retry delay."""
    reason = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else RebusError.reason
    violations: list[FieldViolation] = []
    metadata: dict[str, str] = {}
    retry_seconds: float | None = None
    for detail in status.details:
        request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(request):
            violations += [FieldViolation(v.field, v.description) for v in request.field_violations]
        elif detail.Unpack(info):
            metadata.update(info.metadata)
        elif detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToMilliseconds() / 1000
    return error_class(reason)(status.message, violations=violations, metadata=metadata, retry_seconds=retry_seconds)


def error_class(reason: str) -> type[RebusError]:
    """The domain error of a reason, which is also the name of a gRPC code."""
    return _BY_REASON.get(reason, RebusError)


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
