"""What a servicer works with: the store, the executor, a cache folder, and how to call its libraries."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from rebus import cancellation, tracing
from rebus.errors import invalid
from rebus.jobs import Executor, ResourceRequest, status
from rebus.jobs.events import EventCursor
from rebus.store import Store, documents, requests
from rebus.v1.common_pb2 import JobEvent, JobStatus
from services.executors import open_executor
from services.harness.limits import Limits

CACHE_ENV = "REBUS_CACHE"
# A watcher asks for news after this long, and less and less often while there is none.
WATCH_MIN_SECONDS = 0.2
WATCH_MAX_SECONDS = 2.0
WATCH_BACKOFF = 1.3
# How long the event of a job's end may be outstanding before its writer is taken to be dead and it is written here.
WATCH_REPAIR_SECONDS = 5.0
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
    def open(
        cls,
        store_url: str,
        executor: str = "local",
        executor_settings: Path | None = None,
        *,
        limits: Limits | None = None,
    ) -> Runtime:
        """Opens the store, a cache folder of this machine for it (below ``REBUS_CACHE``), and the named executor.

        Without ``limits``, they are the defaults with what ``REBUS_LIMITS`` sets.
        """
        store = Store.open(store_url)
        if store.process_local:
            raise invalid("store", f"{store.url!r}: jobs run in processes of their own and would not see it")
        root = Path(os.environ.get(CACHE_ENV) or Path.home() / ".cache" / "rebus")
        cache_dir = root / hashlib.sha256(store.url.encode()).hexdigest()[:16]
        cache_dir.mkdir(parents=True, exist_ok=True)
        opened = open_executor(executor, store, cache_dir, executor_settings)
        return cls(store, opened, cache_dir, Limits.of(()) if limits is None else limits)

    def start_job(self, message: M, request: Message, resources: ResourceRequest | None = None) -> M:
        """Stores a new job and starts it; a repeated ``request`` returns the first one untouched.

        Without ``resources``, it asks for what its kind does. ``FailedPreconditionError`` if no machine has as much,
        ``ResourceExhaustedError`` if too many jobs wait.
        """
        with tracing.span("job submit", {"rebus.job.kind": type(message).__name__}) as span:
            document, _ = status.create(
                self.store,
                message,
                request=request,
                host=self.executor.host,
                resources=self.executor.plan(documents.collection_of(type(message)), resources),
                admit=self.executor.admit,
            )
            span.set_attribute("rebus.job", _name(document))
            if status.job_of(document).state == JobStatus.QUEUED:  # a repeat may follow a crash before this line
                self.executor.submit(_name(document))
        return document

    def cancel_job(self, cls: type[M], request: Message) -> M:
        """Marks the job that ``request`` names and tells its process to stop; a repeat finds that done."""
        name = _name(request)
        key = requests.claim(self.store, request, name).key
        job = status.job_of(status.request_cancel(self.store, name, request_key=key))
        if job.cancel_requested and job.state not in status.TERMINAL:
            self.executor.cancel(name)
        return documents.get(self.store, cls, name)

    def resume_job(self, cls: type[M], request: Message) -> M:
        """Starts the failed or cancelled job that ``request`` names again; a repeat finds that done."""
        name = _name(request)
        key = requests.claim(self.store, request, name).key
        if status.requeue(self.store, name, host=self.executor.host, request_key=key):
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
        cursor, ending = EventCursor(self.store, name, after_event), _Ending(self.store, name)
        pause = WATCH_MIN_SECONDS
        while True:
            ended = await run(ending.reached)
            events = await run(cursor.read)
            for event in events:
                yield event
            if ended:
                return
            pause = WATCH_MIN_SECONDS if events else min(pause * WATCH_BACKOFF, WATCH_MAX_SECONDS)
            await asyncio.sleep(pause)


class _Ending:
    """Whether a job has ended and its log says so too: no event comes after that."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._since: float | None = None

    def reached(self) -> bool:
        """Completes the log of a job whose last writer was killed between ending and logging it."""
        job = status.job_of(documents.get(self._store, documents.type_of(self._name), self._name))
        if job.state not in status.TERMINAL:
            self._since = None
            return False
        if status.is_logged(self._store, self._name, job):
            return True
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since >= WATCH_REPAIR_SECONDS:
            status.repair_log(self._store, self._name)
        return False


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
