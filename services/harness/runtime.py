"""What a servicer works with: the store, the executor, a cache folder, and how to call its libraries."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from rebus import cancellation
from rebus.jobs import Executor, LocalExecutor, status
from rebus.jobs.events import EventLog
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobEvent
from services.harness.limits import Limits

CACHE_ENV = "REBUS_CACHE"
WATCH_POLL_SECONDS = 0.2
# Threads that library code runs in. Most of them wait for the store.
WORK_THREADS = 32
_threads = ThreadPoolExecutor(WORK_THREADS, thread_name_prefix="rebus-work")

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True)
class Runtime:
    """Handed to every servicer."""

    store: Store
    executor: Executor
    cache_dir: Path
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def open(cls, store_url: str, limits: Limits | None = None) -> Runtime:
        """Opens the store and a cache folder of this machine for it (below ``REBUS_CACHE``).

        Without ``limits``, they are the defaults with what ``REBUS_LIMITS`` sets.
        """
        store = Store.open(store_url)
        root = Path(os.environ.get(CACHE_ENV) or Path.home() / ".cache" / "rebus")
        cache_dir = root / hashlib.sha256(store.url.encode()).hexdigest()[:16]
        cache_dir.mkdir(parents=True, exist_ok=True)
        return cls(store, LocalExecutor(store, cache_dir), cache_dir, Limits.of(()) if limits is None else limits)

    def start_job(self, message: M, request_id: str) -> M:
        """Stores a new job and starts it; a repeated ``request_id`` returns the first one untouched."""
        document, new = status.create(self.store, message, request_id=request_id)
        if new:
            self.executor.submit(_name(document))
        return document

    def cancel_job(self, cls: type[M], name: str) -> M:
        """Marks a job and tells its process to stop."""
        status.request_cancel(self.store, name)
        self.executor.cancel(name)
        return documents.get(self.store, cls, name)

    def resume_job(self, cls: type[M], name: str) -> M:
        """Starts a failed or cancelled job again."""
        status.requeue(self.store, name)
        self.executor.submit(name)
        return documents.get(self.store, cls, name)

    async def list_jobs(self, cls: type[M], request: Any) -> tuple[list[M], str]:
        """A page of jobs, newest first, for a request with ``page_size`` and ``page_token``."""
        return await run(
            documents.list_page,
            self.store,
            cls,
            page_size=request.page_size,
            page_token=request.page_token,
            newest_first=True,
        )

    async def watch(self, name: str, after_event: int) -> AsyncIterator[JobEvent]:
        """Events numbered above ``after_event``, as they come, until the job has ended and all were sent."""
        events, cls = EventLog(self.store, name), documents.type_of(name)
        while True:
            document = await run(documents.get, self.store, cls, name)
            ended = status.job_of(document).state in status.TERMINAL
            for event in await run(lambda after: list(events.read(after)), after_event):
                after_event = event.sequence
                yield event
            if ended:
                return
            await asyncio.sleep(WATCH_POLL_SECONDS)


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls blocking library code off the event loop.

    Work whose call has ended before its thread is free is not begun; work that runs when its call ends is told so
    through ``rebus.cancellation``, and the call's place stays taken until it stops.
    """
    scope = cancellation.current()

    def work() -> T:
        scope.check()
        return function(*args, **kwargs)

    running = _threads.submit(contextvars.copy_context().run, work)
    try:
        return await asyncio.wrap_future(running)
    except asyncio.CancelledError:
        scope.cancel()
        scope.abandon(running)
        raise


def _name(message: Message) -> str:
    return message.name  # pyright: ignore[reportAttributeAccessIssue]
