"""What each call passes: it is observed, its caller and the call itself are admitted, its time is bounded, its request
is checked against the rules in the protos, the audit log is written, errors turn into rich statuses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import grpc
import protovalidate
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from rebus import cancellation, tracing
from rebus.errors import DeadlineExceededError, FieldViolation, InvalidArgumentError, RebusError, invalid
from rebus.status import to_status
from services.harness.admission import Admission
from services.harness.auth import AccessControl, AuditLog
from services.harness.policies import policy_of
from services.harness.telemetry import Call, Calls
from services.harness.trailers import fitted

log = logging.getLogger("rebus.rpc")
_OWN_METHODS = "/rebus.v1."
# Bytes of the request that this task answers: parsing knows them, and asking the message encodes it once more.
_size: ContextVar[int] = ContextVar("request_bytes", default=0)
# In place of a request that could not be parsed; ``validate`` refuses it.
MALFORMED = any_pb2.Any(type_url="rebus.dev/malformed")


class Methods(grpc.GenericRpcHandler):
    """All methods of one server, each behind its checks. Servicers are added to this in place of the server.

    No interceptor: gRPC's machinery for those costs each call more than all that is checked here.
    """

    def __init__(self, access: AccessControl, admission: Admission, calls: Calls) -> None:
        self._admission = admission
        self._calls = calls
        self._audit = AuditLog(access)
        self._services: list[grpc.GenericRpcHandler] = []
        # Handlers are wrapped once a method, not once a call; only methods that exist get here.
        self._handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Adds a servicer, as generated code does it."""
        self._services.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """Generated code says all methods twice; ``grpc.aio`` too listens once."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Begins a call and returns what answers it; ``None`` for a method that no servicer has."""
        method: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue]
        handler = self._handlers.get(method) or self._found(method, handler_call_details)
        if handler is not None:
            self._calls.begin(method, handler_call_details.invocation_metadata)  # pyright: ignore[reportAttributeAccessIssue]
        return handler

    def _found(self, method: str, details: grpc.HandlerCallDetails) -> Any:
        handler: Any = next((found for service in self._services if (found := service.service(details))), None)
        if handler is None:
            self._calls.unknown(method)
            return None
        if method.startswith(_OWN_METHODS):
            handler = _Method(method, handler, self._admission, self._calls, self._audit).handler()
        self._handlers[method] = handler
        return handler


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls of those who may not make them, before their requests are read."""

    def __init__(self, access: AccessControl, calls: Calls) -> None:
        self._access = access
        self._calls = calls
        self._audit = AuditLog(access)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue]
        handler = await continuation(handler_call_details)
        if handler is not None:
            try:
                await self._access.admit(method, handler_call_details.invocation_metadata)  # pyright: ignore[reportAttributeAccessIssue]
            except Exception as error:
                return self._refusal(method, error)
        return handler

    def _refusal(self, method: str, error: Exception) -> grpc.RpcMethodHandler:
        """Ends the call before its request is read: nobody makes a server hold messages that it will not answer.

        Whatever the method's shape, a handler of streams does it; on the wire there is nothing but the status.
        """
        if isinstance(error, RebusError):
            self._audit.refused(method, error)

        async def refuse(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
            with self._calls.current(context) if self._calls.observes(method) else nullcontext():
                await _abort(method, context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)  # pyright: ignore[reportArgumentType]


class _Method:
    """One method with all that is known of it before a call comes."""

    def __init__(self, name: str, handler: Any, admission: Admission, calls: Calls, audit: AuditLog) -> None:
        self._name = name
        self._calls = calls
        self._audit = audit
        self._inner = handler
        self._policy = policy_of(name)
        self._places = admission.pools[self._policy.pool]
        self._principal = admission.principal
        self._unary_unary = handler.unary_unary
        self._unary_stream = handler.unary_stream
        self._stream_unary = handler.stream_unary
        # What viewers may call changes nothing and is not written down, but for uploads.
        self._recorded = audit.covers(name) or self._stream_unary is not None

    def handler(self) -> grpc.RpcMethodHandler:
        """The handler that runs the method behind all checks."""
        coding = (parser(self._inner), self._inner.response_serializer)
        # The stubs of grpc know no coroutine handlers.
        if self._unary_stream is not None:
            answer: Any = partial(self._run, self._write)
            return grpc.unary_stream_rpc_method_handler(answer, *coding)
        if self._stream_unary is not None:
            answer = partial(self._run, self._collect)
            return grpc.stream_unary_rpc_method_handler(answer, *coding)
        answer = partial(self._run, self._unary_unary)
        return grpc.unary_unary_rpc_method_handler(answer, *coding)

    async def _run(self, behaviour: Callable[..., Awaitable[Any]], request: Any, context: Any) -> Any:
        """The call within its span and its metrics: admission, deadline, ``behaviour``; an error becomes its status.

        Few frames, none of them a generator: each costs a call that finds the processor's caches cold more than all
        else here, and a cancellation always ends a coroutine and frees its place.
        """
        started = time.monotonic()
        with self._calls.current(context) as call:
            asked: float | None = context.time_remaining()
            policy = self._policy
            seconds = policy.default_seconds if asked is None else min(asked, policy.max_seconds)
            scope = cancellation.Scope(started + seconds)
            cancellation.enter(scope)
            # Where gRPC itself ends the call in time, nothing else needs to.
            timer = None if seconds == asked else _Timer(seconds)
            try:
                try:
                    if self._recorded:
                        with self._audit.recorded(self._name, request) as answered:
                            response = await self._admitted(behaviour, request, scope, call)
                            if response is not None:
                                answered(response)
                    else:
                        response = await self._admitted(behaviour, request, scope, call)
                finally:
                    if timer is not None:
                        timer.stop()
            except Exception as error:
                await _abort(self._name, context, error)
                raise
            except asyncio.CancelledError:
                if timer is not None and timer.passed:
                    await _abort(self._name, context, DeadlineExceededError("the deadline of the call has passed"))
                raise
            if log.isEnabledFor(logging.INFO):
                log.info("%s OK %.1f ms", self._name, (time.monotonic() - started) * 1e3)
            return response

    async def _admitted(
        self, behaviour: Callable[..., Awaitable[Any]], request: Any, scope: cancellation.Scope, call: Call
    ) -> Any:
        """Takes a place, runs ``behaviour`` and gives the place back."""
        principal, size = self._principal(call.context), _size.get()
        if not self._places.try_take(principal, size):
            await self._places.take(principal, size, scope.remaining())
        try:
            if self._stream_unary is None:
                validate(request)
            response = await behaviour(request, call.context)
        except BaseException:  # which may be that the loop is gone
            if scope.end():
                self._give_back_later(scope, principal, size)
            else:
                self._places.give_back(principal, size)
            raise
        if scope.end():
            self._give_back_later(scope, principal, size)
        else:
            call.at_end = partial(self._places.give_back, principal, size)
        return response

    def _give_back_later(self, scope: cancellation.Scope, principal: str, size: int) -> None:
        """Frees the call's place once threads that still work for it have noticed that it ended."""
        loop = asyncio.get_running_loop()

        def give_back() -> None:
            loop.call_soon_threadsafe(self._places.give_back, principal, size)

        scope.when_idle(give_back)

    async def _write(self, request: Message, context: Any) -> None:
        responses = self._unary_stream(request, context)
        try:
            async for response in responses:
                await context.write(response)
        finally:
            await responses.aclose()

    async def _collect(self, requests: AsyncIterator[Message], context: Any) -> Message:
        return await self._stream_unary(_validated(requests), context)


class _Timer:
    """Cancels the running task after some seconds. Cheaper than ``asyncio.timeout``, since it wraps nothing."""

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.passed = False
        self._handle = asyncio.get_running_loop().call_later(seconds, self._end)

    def stop(self) -> None:
        """The call has ended."""
        self._handle.cancel()

    def _end(self) -> None:
        self.passed = True
        self._task.cancel()


async def _validated(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    async for request in requests:
        validate(request)
        yield request


def parser(handler: Any) -> Callable[[bytes], Message]:
    """The method's own parser, but ``MALFORMED`` for bytes that are no message: gRPC would answer UNKNOWN."""

    def parse(data: bytes) -> Message:
        _size.set(len(data))
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
        trace_id = tracing.current_trace_id()
        log.error("%s failed, trace id %s", method, trace_id, exc_info=error)
        error = RebusError(f"internal error, trace id {trace_id}", metadata={"trace_id": trace_id})
    else:
        log.info("%s %s: %s", method, error.reason, error)
    status = rpc_status.to_status(fitted(to_status(error)))
    context.set_code(status.code)  # aborting keeps it to itself, and telemetry asks for it
    await context.abort_with_status(status)
