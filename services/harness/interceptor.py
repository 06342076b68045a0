"""The one interceptor: admits callers, checks requests against the rules in the protos, writes the audit log, turns
errors into rich statuses, logs calls."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import protovalidate
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from rebus.errors import FieldViolation, InvalidArgumentError, RebusError, invalid
from rebus.status import to_status
from services.harness.auth import AccessControl, AuditLog
from services.harness.telemetry import current_trace_id
from services.harness.trailers import fitted

log = logging.getLogger("rebus.rpc")
_OWN_METHODS = "/rebus.v1."
# In place of a request that could not be parsed; ``validate`` refuses it.
MALFORMED = any_pb2.Any(type_url="rebus.dev/malformed")


class ServiceInterceptor(grpc.aio.ServerInterceptor):
    """Admits or refuses every call; wraps every unary and server-streaming method of ``rebus.v1``."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access
        self._audit = AuditLog(access)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue]
        if handler is None:
            return None
        metadata = handler_call_details.invocation_metadata  # pyright: ignore[reportAttributeAccessIssue]
        self._audit.begin(metadata)
        try:
            await self._access.admit(method, metadata)
        except Exception as error:
            return self._refusal(method, error)
        if not method.startswith(_OWN_METHODS):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _streaming(method, handler.unary_stream, self._audit), parser(handler), handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(method, handler.unary_unary, self._audit), parser(handler), handler.response_serializer
        )

    def _refusal(self, method: str, error: Exception) -> grpc.RpcMethodHandler:
        """Ends the call before its request is read: nobody makes a server hold messages that it will not answer.

        Whatever the method's shape, a handler of streams does it; on the wire there is nothing but the status.
        """
        if isinstance(error, RebusError):
            self._audit.refused(method, error)

        async def refuse(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
            await _abort(method, context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)  # pyright: ignore[reportArgumentType]


def _unary(
    method: str, behaviour: Callable[..., Awaitable[Message]], audit: AuditLog
) -> Callable[..., Awaitable[Message]]:
    async def call(request: Message, context: grpc.aio.ServicerContext) -> Message:
        started = time.monotonic()
        try:
            with audit.recorded(method, request) as answered:
                validate(request)
                response = await behaviour(request, context)
                answered(response)
        except Exception as error:
            await _abort(method, context, error)
            raise
        log.info("%s OK %.1f ms", method, (time.monotonic() - started) * 1e3)
        return response

    return call


def _streaming(
    method: str, behaviour: Callable[..., AsyncIterator[Message]], audit: AuditLog
) -> Callable[..., AsyncIterator[Message]]:
    async def call(request: Message, context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
        started = time.monotonic()
        try:
            with audit.recorded(method, request) as answered:
                validate(request)
                async for response in behaviour(request, context):
                    answered(response)
                    yield response
        except Exception as error:
            await _abort(method, context, error)
            raise
        log.info("%s OK %.1f ms", method, (time.monotonic() - started) * 1e3)

    return call


def parser(handler: Any) -> Callable[[bytes], Message]:
    """The method's own parser, but ``MALFORMED`` for bytes that are no message: gRPC would answer UNKNOWN."""

    def parse(data: bytes) -> Message:
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            return MALFORMED

    return parse


def validate(request: Message) -> None:
    """Raises ``InvalidArgumentError`` naming every field that breaks a rule in the proto."""
    if request is MALFORMED:
        raise invalid("request", "the bytes are no message of the method's request type")
    found = protovalidate.collect_violations(request)
    if found:
        violations = [_violation(v.proto) for v in found]
        message = "; ".join(f"{v.field}: {v.description}" for v in violations)
        raise InvalidArgumentError(message, violations=violations)


def _violation(proto: Any) -> FieldViolation:
    path = ""
    for element in proto.field.elements if proto.field else ():
        path += f".{element.field_name}" if path else str(element.field_name)
        subscript = getattr(element.subscript, "value", None) if element.subscript else None
        path += f"[{subscript}]" if subscript is not None else ""
    return FieldViolation(path or "request", str(proto.message))


async def _abort(method: str, context: Any, error: Exception) -> None:
    """Ends the call with the error's status; an unexpected error is logged and shows only an id."""
    if isinstance(error, grpc.aio.AbortError):
        return
    if not isinstance(error, RebusError):
        trace_id = current_trace_id()
        log.error("%s failed, trace id %s", method, trace_id, exc_info=error)
        error = RebusError(f"internal error, trace id {trace_id}", metadata={"trace_id": trace_id})
    else:
        log.info("%s %s: %s", method, error.reason, error)
    status = rpc_status.to_status(fitted(to_status(error)))
    context.set_code(status.code)  # aborting keeps it to itself, and telemetry asks for it
    await context.abort_with_status(status)
