"""One thread that works on a stream's items in order, while its call receives the next ones."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
# Items that may wait for the thread; each may be as large as a message.
AHEAD = 4


class Feed(Generic[T]):
    """Calls ``work`` for each item; leave the context to wait for the last.

    A thread of its own, not one of the pool's: an upload takes as long as its sender likes. Handing over an item costs
    a queue's put alone, where a future for each would wake the event loop as often.
    """

    def __init__(self, work: Callable[[T], object]) -> None:
        self._work = work
        self._items: SimpleQueue[T | None] = SimpleQueue()
        self._put = self._taken = 0
        self._error: Exception | None = None
        self._abandoned = False
        # Set while ``put`` waits for room.
        self._wanted = False
        self._room = asyncio.Event()

    async def __aenter__(self) -> Feed[T]:
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run,), name="rebus-feed", daemon=True).start()
        return self

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._abandoned = error is not None
        self._items.put(None)
        await self._ended
        if error is None:
            self._check()

    async def put(self, item: T) -> None:
        """Hands over an item, once few enough wait; raises what ``work`` raised for an earlier one."""
        while self._put - self._taken >= AHEAD:
            self._room.clear()
            self._wanted = True
            if self._put - self._taken >= AHEAD:  # not taken before the thread could see that it is waited for
                await self._room.wait()
            self._wanted = False
        self._check()
        self._put += 1
        self._items.put(item)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if self._error is None and not self._abandoned:
                try:
                    self._work(item)
                except Exception as error:
                    self._error = error
            self._taken += 1
            if self._wanted:
                self._tell(self._room.set)
        self._tell(self._end)

    def _tell(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
