"""Who wants to know how long operations of the store take, and how they end.

Kept apart from the operations: ``Store`` names those that are observed, and each is measured once, whatever other
operations it is made of.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from opentelemetry import trace

from rebus.errors import RebusError
from rebus.tracing import tracer

T = TypeVar("T")
# Called with the operation, its outcome (``OK`` or the reason of a ``RebusError``) and its seconds, in the thread that
# made the call; must be quick and never raise.
Observer = Callable[[str, str, float], None]
# Shorter operations get no span of their own.
SPAN_SECONDS = 0.01

_observers: tuple[Observer, ...] = ()
_lock = threading.Lock()


class _Nesting(threading.local):
    inside = False


_nesting = _Nesting()


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Calls ``observer`` after every operation of every store of this process, for as long as the block runs."""
    global _observers
    with _lock:
        _observers = (*_observers, observer)
    try:
        yield
    finally:
        with _lock:
            _observers = tuple(o for o in _observers if o is not observer)


def observed(*names: str) -> Callable[[type[T]], type[T]]:
    """A class decorator: measures the named methods. A generator counts the time that it works, not its reader's."""

    def decorate(cls: type[T]) -> type[T]:
        for name in names:
            function = getattr(cls, name)
            wrap = _generator if inspect.isgeneratorfunction(function) else _function
            setattr(cls, name, wrap(name, function))
        return cls

    return decorate


def _function(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _unwatched():
            return function(*args, **kwargs)
        measure = _Measure(name)
        try:
            with measure:
                return function(*args, **kwargs)
        finally:
            measure.report()

    return call


def _generator(name: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Iterator[Any]:
        items = function(*args, **kwargs)
        if _unwatched():
            yield from items
            return
        measure, end = _Measure(name), object()
        try:
            while True:
                with measure:
                    item = next(items, end)
                if item is end:
                    return
                yield item
        finally:
            measure.report()

    return call


def _unwatched() -> bool:
    return _nesting.inside or not (_observers or trace.get_current_span().is_recording())


class _Measure:
    """The seconds spent inside its blocks, and what ended the last of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._outcome = "OK"
        self._seconds = 0.0
        self._begun = time.time_ns()

    def __enter__(self) -> None:
        _nesting.inside = True
        self._started = time.perf_counter()

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._seconds += time.perf_counter() - self._started
        _nesting.inside = False
        if error is not None:
            self._outcome = error.reason if isinstance(error, RebusError) else RebusError.reason

    def report(self) -> None:
        for observer in _observers:
            observer(self._name, self._outcome, self._seconds)
        if self._seconds >= SPAN_SECONDS and trace.get_current_span().is_recording():
            attributes = {"rebus.store.outcome": self._outcome, "rebus.store.seconds": self._seconds}
            tracer.start_span(f"store {self._name}", start_time=self._begun, attributes=attributes).end()
