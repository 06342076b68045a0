"""Prepares the next batches in a thread while the model trains on the current one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

from rebus.training.task import Batch

_POLL_SECONDS = 0.1


class Prefetcher:
    """Batches ``make(start) .. make(stop - 1)`` in order, at most ``depth`` ahead; leave the context to end the thread.

    ``wait_seconds`` adds up the time the consumer waited.
    """

    def __init__(self, make: Callable[[int], Batch], start: int, stop: int, *, depth: int = 2) -> None:
        self.wait_seconds = 0.0
        self._make, self._start, self._stop = make, start, stop
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=depth)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rebus-prefetch", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._start, self._stop):
            started = time.perf_counter()
            item = self._ready.get()
            self.wait_seconds += time.perf_counter() - started
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        for step in range(self._start, self._stop):
            try:
                item: Batch | BaseException = self._make(step)
            except BaseException as error:  # handed to the consumer, who raises it
                item = error
            if not self._put(item) or isinstance(item, BaseException):
                return

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._ended.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False
