"""gRPC statuses back into the domain errors they came from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from rebus.errors import FieldViolation, RebusError, UnavailableError

_BY_REASON = {cls.reason: cls for cls in RebusError.__subclasses__()}


def from_status(status: status_pb2.Status) -> RebusError:
    """The domain error of a status, with its field violations."""
    reason = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "INTERNAL"
    violations: list[FieldViolation] = []
    metadata: dict[str, str] = {}
    for detail in status.details:
        request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        if detail.Unpack(request):
            violations += [FieldViolation(v.field, v.description) for v in request.field_violations]
        elif detail.Unpack(info):
            metadata.update(info.metadata)
    return _BY_REASON.get(reason, RebusError)(status.message, violations=violations, metadata=metadata)


@contextmanager
def translated(endpoint: str) -> Iterator[None]:
    """Raises domain errors in place of ``grpc.RpcError``."""
    try:
        yield
    except grpc.RpcError as error:
        raise _translate(error, endpoint) from None


def _translate(error: grpc.RpcError, endpoint: str) -> RebusError:
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        status = None
    if status is not None:
        return from_status(status)
    code: grpc.StatusCode = error.code()  # pyright: ignore[reportAttributeAccessIssue]
    details = error.details()  # pyright: ignore[reportAttributeAccessIssue]
    if code is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(f"no Rebus server answers at {endpoint}: {details}")
    return _BY_REASON.get(code.name, RebusError)(f"{details}")
