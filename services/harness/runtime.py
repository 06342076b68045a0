"""What a servicer works with: the store, the executor, a cache folder, and how to call its libraries."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from rebus import tracing
from rebus.errors import invalid
from rebus.jobs import Executor, LocalExecutor, status
from rebus.jobs.events import EventLog
from rebus.store import Store, documents, requests
from rebus.v1.common_pb2 import JobEvent

CACHE_ENV = "REBUS_CACHE"
WATCH_POLL_SECONDS = 0.2

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

    @classmethod
    def open(cls, store_url: str) -> Runtime:
        """Opens the store and a cache folder of this machine for it (below ``REBUS_CACHE``)."""
        store = Store.open(store_url)
        if store.process_local:
            raise invalid("store", f"{store.url!r}: jobs run in processes of their own and would not see it")
        root = Path(os.environ.get(CACHE_ENV) or Path.home() / ".cache" / "rebus")
        cache_dir = root / hashlib.sha256(store.url.encode()).hexdigest()[:16]
        cache_dir.mkdir(parents=True, exist_ok=True)
        return cls(store, LocalExecutor(store, cache_dir), cache_dir)

    def start_job(self, message: M, request: Message) -> M:
        """Stores a new job and starts it; a repeated ``request`` returns the first one untouched."""
        with tracing.span("job submit", {"rebus.job.kind": type(message).__name__}) as span:
            document, new = status.create(self.store, message, request=request)
            span.set_attribute("rebus.job", _name(document))
            if new:
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
        if status.requeue(self.store, name, request_key=requests.claim(self.store, request, name).key):
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
    """Calls blocking library code off the event loop."""
    return await asyncio.to_thread(function, *args, **kwargs)


def _name(message: Message) -> str:
    return message.name  # pyright: ignore[reportAttributeAccessIssue]
