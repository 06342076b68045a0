"""Which samples of a training set hold samples of a benchmark: by n-grams, perceptual hashes and embeddings.

The same index serves the curator ``contamination``, which drops such rows from training data, and
``contamination_report``, which tells an evaluation how much of its benchmark a training set has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus.config import to_plain
from rebus.data.columns import hash_images, joined_texts, vectors
from rebus.data.dataset import DatasetReader, open_version
from rebus.data.image_hash import MAX_DISTANCE, HashIndex, stacked
from rebus.data.shingles import Unit, ngram_hashes
from rebus.errors import FailedPreconditionError
from rebus.store import Store

By = Literal["text", "image", "embedding"]
Ints = NDArray[np.int64]

_BATCH_ROWS = 512
# What so many items of a benchmark say is its template, not its content.
_MAX_OWNERS = 64


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """When a sample holds an item of a benchmark; any of ``by`` is enough."""

    by: tuple[By, ...] = ("text", "image")
    # Of an item's n-grams, the share that the sample has. Those that over 64 items have do not count.
    min_overlap: float = 0.5
    ngram: int = 8
    unit: Unit = "words"
    # Bits of 128 by which the hashes of an image of each differ.
    max_distance: int = 10
    # Cosine of an embedding of each, in columns that both versions have.
    min_cosine: float = 0.95
    embedding_column: str = "image_embeddings"
    # Rows of the benchmark that are its items; all if empty.
    split: str = ""

    def __post_init__(self) -> None:
        if not self.by:
            raise ValueError("by must name at least one of text, image, embedding")
        if not (0 < self.min_overlap <= 1 and 0 < self.min_cosine <= 1 and 1 <= self.ngram <= 64):
            raise ValueError(f"min_overlap={self.min_overlap}, min_cosine={self.min_cosine} or ngram is out of range")
        if not 0 <= self.max_distance <= MAX_DISTANCE:
            raise ValueError(f"max_distance={self.max_distance} is outside 0 .. {MAX_DISTANCE}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that matching needs, of the benchmark as of the samples."""
        media = ("media",) if "image" in self.by else ()
        embedding = (self.embedding_column,) if "embedding" in self.by else ()
        return ("id", "segments", *media, *embedding)


@dataclass(frozen=True)
class Match:
    """A sample that holds an item of the benchmark."""

    row: int  # position in the batch
    item: str  # id of the benchmark's sample
    reason: str


class BenchmarkIndex:
    """The items of a benchmark, to be found in samples."""

    def __init__(self, reader: DatasetReader, config: MatchConfig) -> None:
        self._config = config
        batches = list(_observed(reader, config))
        self.ids = [identifier for batch in batches for identifier in batch.column("id").to_pylist()]
        if "text" in config.by:
            starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
            cut = [_grams(batch, config) for batch in batches]
            self._index_texts([(grams, rows + start) for (grams, rows), start in zip(cut, starts, strict=False)])
        if "image" in config.by:
            rows = [row for batch in batches for row in hash_images(batch).to_pylist()]
            self._hash_items = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
            hashes = stacked([value for row in rows for value in row])
            self._hashes = HashIndex(hashes, config.max_distance)
        if "embedding" in config.by:
            found = [value for batch in batches for value in vectors(batch, config.embedding_column)]
            self._vector_items = np.repeat(np.arange(len(found)), [len(value) for value in found])
            self._vectors = np.concatenate([value for value in found if len(value)] or [np.empty((0, 0), np.float32)])

    def matches(self, batch: pa.RecordBatch) -> list[Match]:
        """Every (sample, item) that match, with one reason each, by sample."""
        found: dict[tuple[int, int], str] = {}
        searches = {"text": self._by_text, "image": self._by_image, "embedding": self._by_embedding}
        for kind in self._config.by:
            for row, item, reason in searches[kind](batch):
                found.setdefault((row, item), reason)
        return [Match(row, self.ids[item], reason) for (row, item), reason in sorted(found.items())]

    def _index_texts(self, batches: Sequence[tuple[NDArray[np.uint64], Ints]]) -> None:
        grams = np.concatenate([grams for grams, _ in batches] or [np.empty(0, np.uint64)])
        items = np.concatenate([rows for _, rows in batches] or [np.empty(0, np.int64)])
        order = np.argsort(grams, kind="stable")
        grams, items = grams[order], items[order]
        _, member, owners = np.unique(grams, return_inverse=True, return_counts=True)
        telling = owners[member] <= _MAX_OWNERS
        self._grams, self._gram_items = grams[telling], items[telling]
        self._gram_counts = np.bincount(self._gram_items, minlength=len(self.ids))

    def _by_text(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, str]]:
        grams, rows = _grams(batch, self._config)
        low, high = (np.searchsorted(self._grams, grams, side) for side in ("left", "right"))
        counts = high - low
        at = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        pairs = np.stack([np.repeat(rows, counts), self._gram_items[at]], axis=1)
        unique, shared = np.unique(pairs, axis=0, return_counts=True)
        overlap = shared / np.maximum(self._gram_counts[unique[:, 1]], 1)
        for at in np.flatnonzero(overlap >= self._config.min_overlap):
            yield int(unique[at, 0]), int(unique[at, 1]), f"{overlap[at]:.0%} of its {self._config.ngram}-grams"

    def _by_image(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, str]]:
        hashes = hash_images(batch).to_pylist()
        rows = np.repeat(np.arange(len(hashes)), [len(row) for row in hashes])
        pairs, distances = self._hashes.near(stacked([value for row in hashes for value in row]))
        for (query, found), distance in zip(pairs.tolist(), distances.tolist(), strict=True):
            yield int(rows[query]), int(self._hash_items[found]), f"an image at {distance} of 128 bits"

    def _by_embedding(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, str]]:
        for row, own in enumerate(vectors(batch, self._config.embedding_column)):
            if len(own) and len(self._vectors):
                cosines = (own @ self._vectors.T).max(axis=0)
                for at in np.flatnonzero(cosines >= self._config.min_cosine).tolist():
                    yield row, int(self._vector_items[at]), f"an embedding at cosine {cosines[at]:.3f}"


@dataclass(frozen=True, kw_only=True)
class ContaminationReport:
    """How much of a benchmark a training set holds. ``seen``: benchmark sample -> (training sample, reason)."""

    benchmark: str
    training: str
    config: MatchConfig
    num_items: int
    seen: dict[str, tuple[str, str]]

    @property
    def share(self) -> float:
        """Of the benchmark's items, the share that the training set holds."""
        return len(self.seen) / max(self.num_items, 1)

    def require(self, max_share: float) -> None:
        """The gate: ``FailedPreconditionError`` if more than ``max_share`` of the benchmark was seen."""
        if self.share > max_share:
            first, (sample, reason) = next(iter(self.seen.items()))
            raise FailedPreconditionError(
                f"{self.training} holds {self.share:.1%} of {self.benchmark}, more than {max_share:.1%}; "
                f"e.g. sample {sample} has {reason} of {first}"
            )

    def to_plain(self) -> dict[str, object]:
        """As JSON-serialisable values."""
        return {**to_plain(self), "share": self.share}


def contamination_report(
    store: Store, training: str, benchmark: str, config: MatchConfig | None = None
) -> ContaminationReport:
    """Looks in every row of version ``training`` for the items of version ``benchmark``."""
    config = config or MatchConfig()
    index = BenchmarkIndex(open_version(store, benchmark), config)
    seen: dict[str, tuple[str, str]] = {}
    for batch in open_version(store, training).scan_columns(config.reads, batch_rows=_BATCH_ROWS):
        ids = batch.column("id").to_pylist()
        for match in index.matches(batch):
            seen.setdefault(match.item, (ids[match.row], match.reason))
    return ContaminationReport(
        benchmark=benchmark, training=training, config=config, num_items=len(index.ids), seen=seen
    )


def _observed(reader: DatasetReader, config: MatchConfig) -> Iterator[pa.RecordBatch]:
    return reader.scan_columns(config.reads, config.split, batch_rows=_BATCH_ROWS)


def _grams(batch: pa.RecordBatch, config: MatchConfig) -> tuple[NDArray[np.uint64], Ints]:
    """Each row's n-grams, once each, and their rows."""
    grams, offsets = ngram_hashes(joined_texts(batch), config.ngram, config.unit)
    rows = np.repeat(np.arange(batch.num_rows), np.diff(offsets))
    order = np.lexsort((grams, rows))
    grams, rows = grams[order], rows[order]
    new = np.ones(len(grams), bool)
    new[1:] = (grams[1:] != grams[:-1]) | (rows[1:] != rows[:-1])
    return grams[new], rows[new]
