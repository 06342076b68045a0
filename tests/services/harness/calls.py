"""Every RPC of the contract, called with an empty request and whatever credentials."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import rebus.v1
from services.harness.auth.roles import methods_of

CALL_SECONDS = 60.0


def contract_services() -> list[str]:
    """Full names of all services of ``rebus.v1``."""
    modules = [importlib.import_module(f"rebus.v1.{m.name}") for m in pkgutil.iter_modules(rebus.v1.__path__)]
    files = [module.DESCRIPTOR for module in modules if module.__name__.endswith("_pb2")]
    return sorted(service.full_name for file in files for service in file.services_by_name.values())


METHODS: dict[str, MethodDescriptor] = dict(methods_of(contract_services()))


def call(channel: grpc.Channel, path: str, *metadata: tuple[str, str]) -> tuple[grpc.StatusCode, str, str]:
    """Code, message and ErrorInfo reason of a call with an empty request."""
    method = METHODS[path]
    request = message_factory.GetMessageClass(method.input_type)()
    response: Any = message_factory.GetMessageClass(method.output_type)
    shape = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
    stub = getattr(channel, shape)(
        path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
    )
    argument = iter([request]) if method.client_streaming else request
    try:
        answer = stub(argument, metadata=metadata, timeout=CALL_SECONDS)
        if method.server_streaming:
            list(answer)
    except grpc.RpcError as error:
        return error.code(), error.details() or "", _reason(error)  # pyright: ignore[reportAttributeAccessIssue]
    return grpc.StatusCode.OK, "", ""


def bearer(token: str) -> tuple[str, str]:
    """The header of a token."""
    return "authorization", f"Bearer {token}"


def call_all(channel: grpc.Channel, *metadata: tuple[str, str]) -> Iterator[tuple[str, grpc.StatusCode, str, str]]:
    """Path, code, message and reason of a call of every RPC."""
    for path in METHODS:
        yield (path, *call(channel, path, *metadata))


def _reason(error: Any) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.domain == "rebus.dev"
    return info.reason
