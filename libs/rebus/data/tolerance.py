"""How many bad samples an ingestion puts up with."""

from __future__ import annotations

from collections.abc import Sequence

from rebus.errors import InvalidArgumentError
from rebus.v1.dataset_pb2 import Ingestion

DEFAULT_MAX_BAD_SHARE = 0.1
# From so many samples on, a job is given up as hopeless whose bad share is past halfway from what is allowed to all.
JUDGED_FROM = 10_000


class Tolerance:
    """An ingestion's limits: a share of all its samples, and a number of them where it sets one."""

    def __init__(self, ingestion: Ingestion) -> None:
        self._share = ingestion.max_bad_share if ingestion.HasField("max_bad_share") else DEFAULT_MAX_BAD_SHARE
        self._number = ingestion.max_bad_samples if ingestion.HasField("max_bad_samples") else None

    def is_hopeless(self, good: int, bad: int) -> bool:
        """Whether the job need not read on: the number is passed, or so much is bad that the rest will not mend it."""
        total = good + bad
        return self._passes_number(bad) or (total >= JUDGED_FROM and bad > (1 + self._share) / 2 * total)

    def check_early(self, good: int, bad: int, reasons: Sequence[str]) -> None:
        """``InvalidArgumentError`` with the first ``reasons`` if the job need not read on."""
        if self.is_hopeless(good, bad):
            self._refuse(good, bad, reasons)

    def check(self, good: int, bad: int, reasons: Sequence[str]) -> None:
        """``InvalidArgumentError`` if too many of all samples were bad, or none good."""
        if not good:
            first = "; ".join(reasons) or "the sources are empty"
            raise InvalidArgumentError(f"no good sample among {bad}: {first}")
        if bad > self._share * (good + bad) or self._passes_number(bad):
            self._refuse(good, bad, reasons)

    def _passes_number(self, bad: int) -> bool:
        return self._number is not None and bad > self._number

    def _refuse(self, good: int, bad: int, reasons: Sequence[str]) -> None:
        limit = f"max_bad_samples={self._number}" if self._passes_number(bad) else f"max_bad_share={self._share:g}"
        first = "; ".join(reasons)
        raise InvalidArgumentError(f"{bad} of {good + bad} samples are bad, more than {limit} allows: {first}")
