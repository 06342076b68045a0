"""Work done ahead of its consumer by threads, in order and within a bound of bytes.

Threads are enough where ``load`` releases the interpreter's lock, as decoding and reading do; nothing forks.
Prefetches nest: the iterator that one returns may be the ``items`` of the next, read by one stage while it decodes
in the other.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Results that may wait whatever their size, so that many empty ones are bounded too.
MAX_WAITING = 1024


def ordered_prefetch(
    items: Iterable[T], load: Callable[[T], R], *, workers: int, max_bytes: int, size: Callable[[R], int]
) -> Generator[R, None, None]:
    """``load(item)`` of each item, in the order of ``items``, computed ahead by ``workers`` threads.

    ``workers=0`` computes in the caller's thread, one result at a call. A load starts while the finished results that
    wait for the consumer hold less than ``max_bytes`` (by ``size``) and are fewer than ``MAX_WAITING``; the result
    that the consumer waits for may always start. So beside what the consumer keeps, at most ``max_bytes`` plus one
    result a worker are held, however large one of them is.

    An error of ``load``, ``size`` or ``items`` is raised where its result would stand, after all results before it,
    and ends the iterator. Items are taken by the worker threads, one at a time and in order. Threads start with the
    first result asked for; closing the iterator (or dropping it, an error, the end of the program) waits for the
    loads under way, ends the threads and closes ``items`` if it is a generator.
    Raises ``ValueError`` for ``workers`` below 0 or ``max_bytes`` below 1.
    """
    if workers < 0 or max_bytes < 1:
        raise ValueError(f"expected workers >= 0 and max_bytes >= 1, got {workers} and {max_bytes}")
    source = iter(items)
    if workers:
        return _ahead(_Window(source, load, max_bytes, size), workers)
    return _inline(source, load)


def _inline(source: Iterator[T], load: Callable[[T], R]) -> Generator[R, None, None]:
    try:
        for item in source:
            yield load(item)
    finally:
        _close(source)


def _ahead(window: _Window[T, R], workers: int) -> Generator[R, None, None]:
    # The threads are daemons, or a program that ends without closing the iterator would wait for them for ever; they
    # are ended at exit, since native code does not survive a thread that is cut off inside it.
    atexit.register(window.close)
    may_wait = True
    try:
        window.start(workers)
        while window.await_next():
            yield window.pop()  # bound to no name here: the consumer alone keeps it alive
    except GeneratorExit:
        # A dropped iterator may be collected in any thread, also in one for which the threads here would wait.
        may_wait = not isinstance(threading.current_thread(), _Worker)
        raise
    finally:
        if may_wait:
            window.close()
            atexit.unregister(window.close)
        else:
            window.stop()


def _close(source: Iterator[T]) -> None:
    if isinstance(source, Generator):
        source.close()


class _Worker(threading.Thread):
    """A thread of any prefetch."""


class _Window(Generic[T, R]):
    """The loads under way and the finished results that wait for their turn, shared by workers and consumer."""

    def __init__(self, source: Iterator[T], load: Callable[[T], R], max_bytes: int, size: Callable[[R], int]) -> None:
        self._source, self._load, self._size = source, load, size
        self._max_bytes = max_bytes
        self._threads: list[_Worker] = []
        self._turn = threading.Lock()  # held by the one worker that takes the next item
        lock = threading.Lock()  # guards all that follows
        self._room = threading.Condition(lock)  # for the worker whose turn it is
        self._ready = threading.Condition(lock)  # for the consumer
        self._waiting: dict[int, tuple[R, int]] = {}  # finished: result and bytes, by item number
        self._held = 0  # bytes of the above
        self._started = 0  # items taken
        self._consumed = 0  # results handed out
        self._failed: dict[int, BaseException] = {}
        self._end: int | None = None  # no item from this number on; 0 once stopped

    def start(self, workers: int) -> None:
        """Starts the threads."""
        for number in range(workers):
            thread = _Worker(target=self._work, name=f"prefetch-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Lets the threads end after the loads under way, and forgets what waits."""
        with self._ready:
            self._end = 0
            self._waiting.clear()
            self._failed.clear()
            self._room.notify()

    def close(self) -> None:
        """Stops, waits for the threads and closes the items."""
        self.stop()
        for thread in self._threads:
            thread.join()
        _close(self._source)

    def await_next(self) -> bool:
        """Waits for the next result; False at the end. Raises what stands in its place."""
        with self._ready:
            self._ready.wait_for(self._is_decided)
            if self._consumed in self._failed:
                raise self._failed[self._consumed]
            return self._consumed in self._waiting

    def _is_decided(self) -> bool:
        number = self._consumed
        return number in self._waiting or number in self._failed or (self._end is not None and number >= self._end)

    def pop(self) -> R:
        with self._room:
            result, held = self._waiting.pop(self._consumed)
            self._held -= held
            self._consumed += 1
            self._room.notify()
        return result

    def _work(self) -> None:
        while True:
            with self._turn:
                number = self._claim()
                if number is None:
                    return
                try:
                    item = next(self._source)
                except StopIteration:
                    self._stop_at(number)
                    return
                except BaseException as error:
                    self._fail(number, error)
                    return
            try:
                result = self._load(item)
                held = self._size(result)
            except BaseException as error:  # panics of native code arrive as such
                self._fail(number, error)
                return
            self._finish(number, result, held)
            del item, result  # not kept alive while this thread waits for room

    def _claim(self) -> int | None:
        """The number of the next item, once there is room for its result; None if there is no more to do."""
        with self._room:
            self._room.wait_for(lambda: self._end is not None or self._has_room())
            if self._end is not None:
                return None
            self._started += 1
            return self._started - 1

    def _has_room(self) -> bool:
        nothing_outstanding = self._started == self._consumed
        return nothing_outstanding or (self._held < self._max_bytes and len(self._waiting) < MAX_WAITING)

    def _finish(self, number: int, result: R, held: int) -> None:
        with self._ready:
            if self._end is not None and number >= self._end:
                return
            self._waiting[number] = (result, held)
            self._held += held
            if number == self._consumed:
                self._ready.notify()

    def _fail(self, number: int, error: BaseException) -> None:
        with self._ready:
            self._failed[number] = error
        self._stop_at(number)

    def _stop_at(self, number: int) -> None:
        """Nothing from item ``number`` on will be handed out."""
        with self._ready:
            self._end = number if self._end is None else min(self._end, number)
            self._ready.notify()
            self._room.notify()
