"""A feed works on everything in order, in one thread, a bounded number of items behind its caller."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.harness.feed import AHEAD, Feed
from tests.waiting import until


def test_items_are_worked_on_in_order_and_all_before_the_end() -> None:
    done: list[int] = []

    async def main() -> None:
        async with Feed(done.append) as feed:
            for number in range(10_000):
                await feed.put(number)
        assert len(done) == 10_000

    asyncio.run(main())
    assert done == [*range(10_000)]


def test_the_caller_is_held_back_and_the_loop_stays_free() -> None:
    gate, put = threading.Event(), 0

    async def main() -> None:
        nonlocal put

        async def fill() -> None:
            nonlocal put
            async with Feed(lambda _: gate.wait(60)) as feed:
                for _ in range(3 * AHEAD):
                    await feed.put(0)
                    put += 1

        filling = asyncio.create_task(fill())
        while put < AHEAD:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert put == AHEAD  # one with the thread, the others waiting
        gate.set()
        await filling

    asyncio.run(main())
    assert put == 3 * AHEAD


@pytest.mark.parametrize("items", [1, 2, 50])
def test_an_error_reaches_the_caller_and_ends_the_work(items: int) -> None:
    worked: list[int] = []

    def work(number: int) -> None:
        worked.append(number)
        raise ValueError("no")

    async def main() -> None:
        async with Feed(work) as feed:
            for number in range(items):
                await feed.put(number)

    with pytest.raises(ValueError, match="no"):
        asyncio.run(main())
    assert worked == [0]


def test_a_cancelled_caller_leaves_what_waits_undone_and_no_thread_behind() -> None:
    gate, worked = threading.Event(), []

    def work(number: int) -> None:
        gate.wait(60)
        worked.append(number)

    async def fill() -> None:
        async with Feed(work) as feed:
            for number in range(2 * AHEAD):
                await feed.put(number)

    async def main() -> None:
        filling = asyncio.create_task(fill())
        await asyncio.sleep(0.05)
        filling.cancel()
        await asyncio.sleep(0.05)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await filling

    asyncio.run(main())
    assert worked == [0]
    until(lambda: "rebus-feed" not in [thread.name for thread in threading.enumerate()], seconds=10)
