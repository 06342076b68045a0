"""Prepares the next batches in a thread while the model trains on the current one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from rebus.data.prefetch import ordered_prefetch
from rebus.training.task import Batch

_AHEAD = 2


class Prefetcher:
    """The next ``count`` of ``batches``, made at most a few ahead; leave the context to end the thread.

    ``wait_seconds`` adds up the time the consumer waited.
    """

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self.wait_seconds = 0.0
        # One thread, since each batch follows from the state after the one before; the bound counts batches.
        self._ready = ordered_prefetch(
            islice(batches, count), lambda batch: batch, workers=1, max_bytes=_AHEAD, size=lambda batch: 1
        )

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *error: object) -> None:
        self._ready.close()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            batch = next(self._ready, None)
            if batch is None:
                return
            self.wait_seconds += time.perf_counter() - started
            yield batch
