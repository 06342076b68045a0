"""The set of ids on disk against Python's own, and in how much memory."""

from __future__ import annotations

import random
from contextlib import closing

import psutil

from rebus.data.seen import SeenIds


def test_equals_a_set() -> None:
    rng = random.Random(0)
    known: set[str] = set()
    with closing(SeenIds()) as seen:
        for _ in range(3000):
            identifier = f"source/ü{rng.randrange(1000)}"
            assert seen.add(identifier) == (identifier not in known)
            known.add(identifier)
        seen.update(f"more{n}" for n in range(100))
        assert not seen.add("more99")
        assert seen.add("more100")
        assert not seen.add("more100")


def test_memory_is_that_of_the_cache() -> None:
    with closing(SeenIds()) as seen:
        before = psutil.Process().memory_info().rss
        seen.update(f"some/source/file.jsonl:{n}" for n in range(300_000))
        grown = psutil.Process().memory_info().rss - before
    assert grown < 14 << 20  # a set of these strings takes 40 MiB
