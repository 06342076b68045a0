"""Prefetching against the plain loop: order, errors, bounds, and what is left behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.data.prefetch import MAX_WAITING, ordered_prefetch

WORKERS = [0, 1, 2, 5]


class BrokenItemError(Exception):
    pass


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("prefetch-")]


def outcome(results: Iterator[Any]) -> tuple[list[Any], str]:
    """All results, and the error that ended them."""
    found: list[Any] = []
    try:
        for result in results:
            found.append(result)
    except BrokenItemError as error:
        return found, str(error)
    return found, ""


@given(
    sizes=st.lists(st.integers(0, 50), max_size=40),
    workers=st.sampled_from(WORKERS),
    max_bytes=st.integers(1, 120),
    bad_load=st.integers(0, 60),
    bad_item=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_the_plain_loop(
    sizes: list[int], workers: int, max_bytes: int, bad_load: int, bad_item: int, seed: int
) -> None:
    delays = np.random.default_rng(seed).uniform(0, 5e-5, len(sizes))

    def items() -> Iterator[int]:
        for number in range(len(sizes)):
            if number == bad_item:
                raise BrokenItemError(f"item {number}")
            yield number

    def load(number: int) -> tuple[int, int]:
        time.sleep(delays[number])
        if number == bad_load:
            raise BrokenItemError(f"load {number}")
        return number, sizes[number]

    found = outcome(ordered_prefetch(items(), load, workers=workers, max_bytes=max_bytes, size=lambda r: r[1]))

    assert found == outcome(map(load, items()))
    assert threads() == []


class Tracked:
    """Counts the bytes of its living instances."""

    alive = 0
    peak = 0
    lock = threading.Lock()

    def __init__(self, size: int) -> None:
        self.size = size
        with Tracked.lock:
            Tracked.alive += size
            Tracked.peak = max(Tracked.peak, Tracked.alive)

    def __del__(self) -> None:
        with Tracked.lock:
            Tracked.alive -= self.size


@given(
    sizes=st.lists(st.sampled_from([0, 1, 5, 20, 500]), min_size=1, max_size=60),
    workers=st.sampled_from(WORKERS),
    max_bytes=st.sampled_from([1, 10, 100]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_bytes_held_stay_below_the_stated_bound(sizes: list[int], workers: int, max_bytes: int) -> None:
    Tracked.alive = Tracked.peak = 0
    results = ordered_prefetch(sizes, Tracked, workers=workers, max_bytes=max_bytes, size=lambda r: r.size)

    position = 0
    while next(results, None) is not None:
        position += 1
        if position % 7 == 0:
            time.sleep(1e-3)  # the threads run as far ahead as they may

    assert Tracked.peak <= max_bytes + max(workers, 1) * max(sizes)
    assert Tracked.alive == 0


def test_runs_ahead_until_the_bytes_are_full_and_no_further() -> None:
    started: list[int] = []
    results = ordered_prefetch(range(100), lambda n: started.append(n) or n, workers=1, max_bytes=40, size=lambda _: 10)
    assert next(results) == 0

    _wait_until(lambda: len(started) == 5)  # 0 was consumed; 1 to 4 wait and hold 40 bytes
    time.sleep(0.05)
    assert started == [0, 1, 2, 3, 4]
    assert next(results) == 1
    _wait_until(lambda: len(started) == 6)
    results.close()


def test_results_without_bytes_are_bounded_too() -> None:
    started: list[int] = []
    results = ordered_prefetch(range(10**9), lambda n: started.append(n), workers=2, max_bytes=1, size=lambda _: 0)
    next(results)

    _wait_until(lambda: len(started) >= MAX_WAITING)
    time.sleep(0.05)
    assert len(started) <= MAX_WAITING + 1 + 2
    results.close()


def test_loads_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=30)  # passes only if three loads are under way together

    results = ordered_prefetch(range(9), lambda n: (barrier.wait(), n)[1], workers=3, max_bytes=1, size=lambda _: 0)

    assert list(results) == list(range(9))


def test_a_slow_first_item_does_not_stop_the_others() -> None:
    others = threading.Event()

    def load(number: int) -> int:
        if number == 0:
            assert others.wait(30)
        elif number == 3:
            others.set()
        return number

    assert list(ordered_prefetch(range(6), load, workers=2, max_bytes=100, size=lambda _: 1)) == list(range(6))


@pytest.mark.parametrize("how", ["close", "drop", "error"])
def test_leaving_early_ends_threads_and_closes_the_items(how: str) -> None:
    closed: list[bool] = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    def load(number: int) -> int:
        if how == "error" and number == 4:
            raise BrokenItemError
        return number

    results: Any = ordered_prefetch(items(), load, workers=3, max_bytes=5, size=lambda _: 1)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert len(threads()) == 3 or how == "error"
    if how == "close":
        results.close()
    elif how == "drop":
        del results
        gc.collect()
    else:
        with pytest.raises(BrokenItemError):
            next(results)

    assert closed == [True]
    assert threads() == []


def test_an_iterator_may_be_collected_in_a_thread_of_its_own() -> None:
    """The cycle that holds it is found wherever the collector happens to run."""
    holder: dict[str, Any] = {}
    dropped = threading.Event()
    collected = weakref.ref(owner := Collected())

    def items() -> Iterator[int]:
        yield 0
        assert dropped.wait(30)
        gc.collect()
        yield from itertools.count()

    holder["results"] = ordered_prefetch(items(), lambda n: n, workers=3, max_bytes=5, size=lambda _: 1)
    holder["self"], holder["owner"] = holder, owner
    assert next(holder["results"]) == 0
    gc.disable()
    try:
        del holder, owner
        dropped.set()
        _wait_until(lambda: collected() is None and not threads())
    finally:
        gc.enable()


class Collected:
    """Something whose end can be seen."""


def test_nothing_runs_before_the_first_result_is_asked_for() -> None:
    ordered_prefetch(iter([]), lambda n: n, workers=2, max_bytes=1, size=lambda _: 1)

    assert threads() == []


def test_prefetches_nest() -> None:
    def items() -> Iterator[int]:
        blocks = ordered_prefetch(range(0, 100, 10), lambda n: n, workers=1, max_bytes=2, size=lambda _: 1)
        with contextlib.closing(blocks):
            for block in blocks:
                yield from range(block, block + 10)

    results = ordered_prefetch(items(), lambda n: n * n, workers=2, max_bytes=7, size=lambda _: 1)

    assert [next(results) for _ in range(25)] == [n * n for n in range(25)]
    results.close()
    assert threads() == []


def test_a_panic_in_a_thread_reaches_the_consumer() -> None:
    class PanicError(BaseException):
        pass

    def load(number: int) -> int:
        raise PanicError

    with pytest.raises(PanicError):
        next(ordered_prefetch([1], load, workers=1, max_bytes=1, size=lambda _: 1))


def test_a_program_may_end_without_closing() -> None:
    program = (
        "from rebus.data.prefetch import ordered_prefetch\n"
        "results = ordered_prefetch(range(10**9), str, workers=2, max_bytes=9, size=len)\n"
        "print(next(results))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("settings", [{"workers": -1, "max_bytes": 1}, {"workers": 1, "max_bytes": 0}])
def test_settings_outside_their_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="workers >= 0 and max_bytes >= 1"):
        ordered_prefetch([], str, size=len, **settings)


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
