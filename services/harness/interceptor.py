"""The one interceptor: checks requests against the rules in the protos, turns errors into rich statuses, logs calls."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import protovalidate
from google.protobuf.message import Message
from grpc_status import rpc_status

from rebus.errors import FieldViolation, InvalidArgumentError, RebusError
from rebus.status import to_status

log = logging.getLogger("rebus.rpc")
_OWN_METHODS = "/rebus.v1."


class ServiceInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every unary and server-streaming method of ``rebus.v1``."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue]
        if handler is None or not method.startswith(_OWN_METHODS):
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _streaming(method, handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(method, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )


def _unary(method: str, behaviour: Callable[..., Awaitable[Message]]) -> Callable[..., Awaitable[Message]]:
    async def call(request: Message, context: grpc.aio.ServicerContext) -> Message:
        started = time.monotonic()
        try:
            validate(request)
            response = await behaviour(request, context)
        except Exception as error:
            await _abort(method, context, error)
            raise
        log.info("%s OK %.1f ms", method, (time.monotonic() - started) * 1e3)
        return response

    return call


def _streaming(method: str, behaviour: Callable[..., AsyncIterator[Message]]) -> Callable[..., AsyncIterator[Message]]:
    async def call(request: Message, context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
        started = time.monotonic()
        try:
            validate(request)
            async for response in behaviour(request, context):
                yield response
        except Exception as error:
            await _abort(method, context, error)
            raise
        log.info("%s OK %.1f ms", method, (time.monotonic() - started) * 1e3)

    return call


def validate(request: Message) -> None:
    """Raises ``InvalidArgumentError`` naming every field that breaks a rule in the proto."""
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
        trace_id = secrets.token_hex(8)
        log.exception("%s failed, trace id %s", method, trace_id)
        error = RebusError(f"internal error, trace id {trace_id}", metadata={"trace_id": trace_id})
    else:
        log.info("%s %s: %s", method, error.reason, error)
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
