"""Adds up what happened between two reports."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from rebus.training.task import Batch


class Meter:
    """Means of losses, and rates by the clock."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._clear()

    def _clear(self) -> None:
        self._started = time.perf_counter()
        self._losses: list[float] = []
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._tokens = self._images = self._samples = 0
        self._norm = self._rate = 0.0

    def add(self, loss: float, norm: float, rate: float, metrics: Mapping[str, Tensor | float], batch: Batch) -> None:
        """Counts one step."""
        self._losses.append(loss)
        self._norm, self._rate = max(self._norm, norm), rate
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
            self._counts[name] = self._counts.get(name, 0) + 1
        for taken in batch.consumed.values():
            self._samples += taken.samples
            self._tokens += taken.tokens
            self._images += taken.images

    def report(self, wait_seconds: float) -> dict[str, object]:
        """The values since the last report, which are then forgotten.

        ``wait_seconds`` is all time spent waiting for data so far in the stage. ``losses`` holds every step's loss in
        order, exactly; the other values are means, but ``grad_norm`` (the largest) and ``lr_factor`` (the last).
        """
        seconds = max(time.perf_counter() - self._started, 1e-9)
        values: dict[str, object] = {
            "loss": sum(self._losses) / len(self._losses),
            "losses": self._losses,
            **{name: total / self._counts[name] for name, total in self._sums.items()},
            "grad_norm": self._norm,
            "lr_factor": self._rate,
            "tokens_per_second": self._tokens / seconds,
            "images_per_second": self._images / seconds,
            "samples_per_second": self._samples / seconds,
            "data_wait_share": min(1.0, (wait_seconds - self._waited) / seconds),
        }
        self._waited = wait_seconds
        self._clear()
        return values
