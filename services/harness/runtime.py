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

from rebus.jobs import Executor, status
from rebus.jobs.events import EventLog
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobEvent
from services.executors import open_executor

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
    def open(cls, store_url: str, executor: str = "local", executor_settings: Path | None = None) -> Runtime:
        """Opens the store, a cache folder of this machine for it (below ``REBUS_CACHE``), and the named executor."""
        store = Store.open(store_url)
        root = Path(os.environ.get(CACHE_ENV) or Path.home() / ".cache" / "rebus")
        cache_dir = root / hashlib.sha256(store.url.encode()).hexdigest()[:16]
        cache_dir.mkdir(parents=True, exist_ok=True)
        return cls(store, open_executor(executor, store, cache_dir, executor_settings), cache_dir)

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
    """Calls blocking library code off the event loop."""
    return await asyncio.to_thread(function, *args, **kwargs)


def _name(message: Message) -> str:
    return message.name  # pyright: ignore[reportAttributeAccessIssue]
