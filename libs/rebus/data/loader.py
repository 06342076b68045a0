"""Rows of a dataset version, read in blocks and decoded ahead of their consumer by threads, in any order.

One thread (or more, for a store with latency) takes blocks of rows, the decoding threads work on their images, and the
consumer gets the results in the order of the rows, whatever the number of threads. Nothing forks.

Bounds, beside what the consumer keeps: ``read_bytes`` of encoded media that wait and ``decoded_bytes`` of results that
wait; under way are a block a reading thread, the block being decoded and the one before it, and a group of results a
decoding thread and at the consumer: those of at most ``_GROUP_ROWS`` rows, of about ``_GROUP_BYTES`` encoded, or of one
row. A block has at most ``block_rows`` rows, and as many as will hold ``block_bytes`` if they are like the rows
before them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rebus.data.dataset import DatasetReader
from rebus.data.images import ImageBytes, decode_image
from rebus.data.prefetch import ordered_prefetch
from rebus.data.rows import media_views
from rebus.data.sample import Sample
from rebus.jobs.resources import available_cpus
from rebus.memory import keep_buffers

T = TypeVar("T")
R = TypeVar("R")

# Rows of the first block, from which the size of the following ones is estimated.
_FIRST_BLOCK_ROWS = 8
# A thread takes several rows at a time, since handing over each would cost as much as a twentieth of its decoding.
_GROUP_ROWS = 8
_GROUP_BYTES = 512 << 10


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Threads and bounds of one loader; none of them changes what is loaded.

    ``decode_threads`` 0 decodes in the caller's thread and ``read_threads`` 0 reads in a decoding one;
    ``decode_threads`` None takes one a core.
    """

    decode_threads: int | None = None
    read_threads: int = 1
    decoded_bytes: int = 256 << 20
    read_bytes: int = 32 << 20
    block_bytes: int = 8 << 20
    block_rows: int = 256

    def __post_init__(self) -> None:
        if min(self.decode_threads or 0, self.read_threads) < 0:
            raise ValueError(f"threads must not be negative, got {self}")
        if min(self.decoded_bytes, self.read_bytes, self.block_bytes, self.block_rows) < 1:
            raise ValueError(f"bytes and rows must be positive, got {self}")

    @property
    def decoders(self) -> int:
        """``decode_threads``, or one for each core that this process may use."""
        return math.ceil(available_cpus()) if self.decode_threads is None else self.decode_threads


DEFAULT = LoaderConfig()


class ImageDecoder(Protocol):
    """Encoded bytes to pixels, in any thread: ``decode_image`` or an ``ImageProcessor``."""

    def __call__(self, data: ImageBytes, *, field: str) -> np.ndarray: ...


def load_images(
    reader: DatasetReader,
    rows: Iterable[int],
    *,
    decode: ImageDecoder = decode_image,
    config: LoaderConfig = DEFAULT,
) -> Generator[list[np.ndarray], None, None]:
    """The decoded images of each of ``rows``, in that order; the media of these rows must be images.

    Reads no column but the media, and makes no samples. ``InvalidArgumentError`` names the row and the medium that
    could not be decoded, or the row that the version does not have.
    """

    def load(row: tuple[int, list[memoryview]]) -> list[np.ndarray]:
        number, media = row
        where = f"{reader.version.name}.rows[{number}]"
        return [decode(data, field=f"{where}.media[{i}]") for i, data in enumerate(media)]

    def take(block: np.ndarray) -> tuple[list[tuple[int, list[memoryview]]], int]:
        # In row order, or Lance would copy what it read once more into the order asked for.
        order = np.argsort(block, kind="stable")
        table = reader.table(["media"], block[order])
        views = media_views(table.column("media"))
        found = [(int(block[at]), views[place]) for at, place in enumerate(np.argsort(order).tolist())]
        return found, table.nbytes

    return _load(take, rows, load, config, size=lambda images: sum(pixels.nbytes for pixels in images))


class TakesRows(Protocol):
    """Random access to samples: a ``DatasetReader``, or what a training binding leaves of one."""

    def take(self, rows: NDArray[np.int64], /) -> list[Sample]:
        """The samples at ``rows``, in that order; called by several threads."""
        ...


def load_samples(
    source: TakesRows,
    rows: Iterable[int],
    load: Callable[[Sample], R],
    *,
    size: Callable[[R], int],
    config: LoaderConfig = DEFAULT,
) -> Generator[R, None, None]:
    """``load(sample)`` of each of ``rows``, in that order; ``size`` gives the bytes of a result.

    ``load`` runs in the decoding threads. Its errors are raised where its result would stand.
    """

    def take(block: np.ndarray) -> tuple[list[Sample], int]:
        samples = source.take(block)
        return samples, sum(len(data) for sample in samples for data in sample.media)

    return _load(take, rows, load, config, size=size)


def _load(
    take: Callable[[np.ndarray], tuple[list[T], int]],
    rows: Iterable[int],
    load: Callable[[T], R],
    config: LoaderConfig,
    *,
    size: Callable[[R], int],
) -> Generator[R, None, None]:
    keep_buffers()
    loaded = ordered_prefetch(
        _read(take, rows, config),
        lambda group: _Loaded.of(group, load),
        workers=config.decoders,
        max_bytes=config.decoded_bytes,
        size=lambda group: sum(map(size, group.results)),
    )
    with contextlib.closing(loaded):
        for group in loaded:
            yield from group


@dataclass
class _Loaded(Generic[R]):
    """What became of a group of rows; what went wrong with the row after the last result."""

    results: list[R]
    error: BaseException | None = None

    @classmethod
    def of(cls, group: list[T], load: Callable[[T], R]) -> _Loaded[R]:
        results: list[R] = []
        try:
            for item in group:
                results.append(load(item))
        except BaseException as error:  # panics of native code arrive as such
            return cls(results, error)
        return cls(results)

    def __iter__(self) -> Iterator[R]:
        self.results.reverse()
        while self.results:
            yield self.results.pop()  # bound to no name here: the consumer alone keeps it alive
        if self.error is not None:
            raise self.error


def _read(
    take: Callable[[np.ndarray], tuple[list[T], int]], rows: Iterable[int], config: LoaderConfig
) -> Iterator[list[T]]:
    """What ``take`` makes of the rows, read ahead in blocks, in groups for one thread each."""
    blocks = _Blocks(rows, config)

    def read(block: np.ndarray) -> tuple[list[T], int]:
        taken, held = take(block)
        blocks.learn(len(taken), held)
        return taken, held

    with contextlib.closing(
        ordered_prefetch(
            blocks, read, workers=config.read_threads, max_bytes=config.read_bytes, size=lambda block: block[1]
        )
    ) as taken:
        for found, held in taken:
            length = _group_length(len(found), held, config.decoders)
            for start in range(0, len(found), length):
                yield found[start : start + length]
            del found  # else this block would live until the next is there


def _group_length(rows: int, held: int, threads: int) -> int:
    """Rows that a thread takes at a time, out of a block of ``rows`` and ``held`` bytes: some for every thread."""
    return max(1, min(_GROUP_ROWS, rows // max(threads, 1), rows * _GROUP_BYTES // max(held, 1)))


class _Blocks:
    """Cuts row numbers into blocks of about ``block_bytes``, by the mean size of the rows read so far."""

    def __init__(self, rows: Iterable[int], config: LoaderConfig) -> None:
        self._rows = iter(rows)
        self._config = config
        self._known = (0, 0)  # rows and bytes read

    def learn(self, rows: int, held: int) -> None:
        """Notes what a block held. Several threads may lose an update, which only makes the estimate coarser."""
        known_rows, known_bytes = self._known
        self._known = known_rows + rows, known_bytes + held

    def __iter__(self) -> Iterator[np.ndarray]:
        while len(block := np.fromiter(islice(self._rows, self._next_length()), np.int64)):
            yield block

    def _next_length(self) -> int:
        rows, held = self._known
        if not rows:
            return min(_FIRST_BLOCK_ROWS, self._config.block_rows)
        # Never more than was read before: decoding begins soon, and the estimate rests on as much as it decides.
        return max(1, min(self._config.block_rows, rows, self._config.block_bytes * rows // max(held, 1)))
