"""Statuses that fit into a response's trailers.

gRPC refuses trailers above 8 KiB or so, and the caller then sees neither the code nor the reason. The message
travels twice: percent-encoded, up to three bytes a byte, and in the details, four bytes for three.
"""

from __future__ import annotations

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

MAX_MESSAGE_BYTES = 1000
MAX_VIOLATIONS_BYTES = 2000
MAX_FIELD_BYTES = 200
MAX_VALUE_BYTES = 300


def fitted(status: status_pb2.Status) -> status_pb2.Status:
    """The status with its texts cut, and as many of its field violations as there is room for, at least the first."""
    short = status_pb2.Status(code=status.code, message=_cut(status.message, MAX_MESSAGE_BYTES))
    for detail in status.details:
        request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        if detail.Unpack(request):
            short.details.append(_packed(_fitted_violations(request)))
        elif detail.Unpack(info):
            for key, value in list(info.metadata.items()):
                info.metadata[key] = _cut(value, MAX_VALUE_BYTES)
            short.details.append(_packed(info))
        else:
            short.details.append(detail)
    return short


def _fitted_violations(request: error_details_pb2.BadRequest) -> error_details_pb2.BadRequest:
    short, size = error_details_pb2.BadRequest(), 0
    for violation in request.field_violations:
        field, description = _cut(violation.field, MAX_FIELD_BYTES), _cut(violation.description, MAX_VALUE_BYTES)
        size += len(field.encode()) + len(description.encode())
        if size > MAX_VIOLATIONS_BYTES:
            break
        short.field_violations.add(field=field, description=description)
    return short


def _cut(text: str, limit: int) -> str:
    data = text.encode()
    return text if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "..."


def _packed(message: error_details_pb2.BadRequest | error_details_pb2.ErrorInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
