"""gRPC statuses back into the domain errors they came from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from rebus.errors import RebusError, UnavailableError
from rebus.status import error_class, from_status


@contextmanager
def translated(endpoint: str) -> Iterator[None]:
    """Raises domain errors in place of ``grpc.RpcError``."""
    try:
        yield
    except grpc.RpcError as error:
        raise _translate(error, endpoint) from None


def _translate(error: grpc.RpcError, endpoint: str) -> RebusError:
    try:
        status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    except (ValueError, DecodeError):
        status = None
    if status is not None:
        return from_status(status)
    code: grpc.StatusCode = error.code()  # pyright: ignore[reportAttributeAccessIssue]
    details = error.details()  # pyright: ignore[reportAttributeAccessIssue]
    if code is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(f"no Rebus server answers at {endpoint}: {details}")
    return error_class(code.name)(f"{details}")
