"""Prepares the next batches in a thread while the model trains on the current one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from rebus.data.prefetch import ordered_prefetch
from rebus.training.task import Batch

# Batches that may wait, fewer where they hold as many bytes.
_AHEAD = 2
_AHEAD_BYTES = 256 << 20


class Prefetcher:
    """The next ``count`` of ``batches``, made ahead within a bound; leave the context to end the thread.

    At most ``_AHEAD`` batches wait, and none is begun while those that wait hold ``_AHEAD_BYTES``. ``wait_seconds``
    adds up the time the consumer waited.
    """

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self.wait_seconds = 0.0
        # One thread, since each batch follows from the state after the one before; the loader within decodes in many.
        self._ready = ordered_prefetch(
            islice(batches, count),
            lambda batch: batch,
            workers=1,
            max_bytes=_AHEAD_BYTES,
            size=lambda batch: max(batch.num_bytes, _AHEAD_BYTES // _AHEAD),
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
