"""A source gives no more samples than its limits allow: a few bytes may announce billions of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rebus.data.readers.base import Draft, Quarantined, Reader
from rebus.data.sample import Sample
from rebus.errors import invalid

T = TypeVar("T")


def bounded(reader: Reader, max_samples: int, field: str) -> Reader:
    """``reader``, which raises ``InvalidArgumentError`` naming ``field`` behind its first ``max_samples`` items."""
    if hasattr(reader, "drafts"):
        return _BoundedDrafts(reader, max_samples, field)
    return _Bounded(reader, max_samples, field)


class _Bounded:
    """The items of a reader, counted."""

    def __init__(self, reader: Reader, max_samples: int, field: str) -> None:
        self._reader, self._max_samples, self._field = reader, max_samples, field

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        return self._counted(self._reader)

    def _counted(self, items: Iterable[T]) -> Iterator[T]:
        for number, item in enumerate(items):
            if number >= self._max_samples:
                raise invalid(f"{self._field}.settings.limits.max_samples", f"more than {self._max_samples} samples")
            yield item


class _BoundedDrafts(_Bounded):
    """The same for a reader whose samples others finish."""

    def drafts(self) -> Iterator[Draft | Sample | Quarantined]:
        """The reader's drafts."""
        drafts: Callable[[], Iterable[Draft | Sample | Quarantined]] = getattr(self._reader, "drafts")  # noqa: B009
        return self._counted(drafts())
