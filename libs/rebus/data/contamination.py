"""Which samples of a training set hold samples of a benchmark: by n-grams, perceptual hashes and embeddings.

The same index serves the curator ``contamination``, which drops such rows from training data, and
``contamination_report``, which tells how much of a benchmark a training set holds. ``contamination_gate`` puts such
reports together for a run or an evaluation.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported.)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rebus.config import to_plain
from rebus.data.columns import hash_images, joined_texts, vectors
from rebus.data.contamination_match import MatchConfig
from rebus.data.dataset import DatasetReader, open_version
from rebus.data.image_hash import HashIndex, stacked
from rebus.data.shingles import ngram_hashes
from rebus.errors import FailedPreconditionError, invalid
from rebus.store import Store

Ints = NDArray[np.int64]

# Rows held at a time, with their images: few, since a row may hold several photographs.
_BATCH_ROWS = 64
_BATCH_ROWS_WITHOUT_MEDIA = 1024
# What so many items of a benchmark say is its template, not its content.
_MAX_OWNERS = 64


@dataclass(frozen=True)
class Match:
    """A sample that holds an item of the benchmark."""

    row: int  # position in the batch
    item: str  # id of the benchmark's sample
    reason: str


class BenchmarkIndex:
    """The items of a benchmark, to be found in samples."""

    def __init__(self, reader: DatasetReader, config: MatchConfig) -> None:
        self.name, self.config = reader.version.name, config
        self.ids: list[str] = []
        texts: list[tuple[NDArray[np.uint64], Ints]] = []
        hashes: list[list[bytes]] = []
        embedded: list[np.ndarray] = []
        for batch in _scan(reader, config, config.split, ()):  # what is kept of a batch holds no image
            if "text" in config.by:
                grams, rows = _grams(batch, config)
                texts.append((grams, rows + len(self.ids)))
            if "image" in config.by:
                hashes += hash_images(batch).to_pylist()
            if "embedding" in config.by:
                embedded += vectors(batch, config.embedding_column)
            self.ids += batch.column("id").to_pylist()
        self._index_texts(texts)
        self._index_hashes(hashes)
        self._vector_items = np.repeat(np.arange(len(embedded)), [len(value) for value in embedded])
        self._vectors = np.concatenate([value for value in embedded if len(value)] or [np.empty((0, 0), np.float32)])

    def matches(self, batch: pa.RecordBatch) -> list[Match]:
        """Every (sample, item) that match, with one reason each, by sample."""
        found: dict[tuple[int, int], str] = {}
        searches = {"text": self._by_text, "image": self._by_image, "embedding": self._by_embedding}
        for kind in self.config.by:
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

    def _index_hashes(self, rows: Sequence[Sequence[bytes]]) -> None:
        hashes = stacked([value for row in rows for value in row])
        items = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        unique, member = np.unique(hashes, axis=0, return_inverse=True)
        self._hashes = HashIndex(unique, self.config.max_distance)
        # The items of each hash: many questions may be asked about one picture.
        order = np.argsort(member.reshape(-1), kind="stable")
        ends = np.cumsum(np.bincount(member.reshape(-1), minlength=len(unique)))
        self._hash_items = np.split(items[order], ends[:-1])

    def _by_text(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, str]]:
        grams, rows = _grams(batch, self.config)
        low, high = (np.searchsorted(self._grams, grams, side) for side in ("left", "right"))
        counts = high - low
        at = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        pairs = np.stack([np.repeat(rows, counts), self._gram_items[at]], axis=1)
        unique, shared = np.unique(pairs, axis=0, return_counts=True)
        overlap = shared / np.maximum(self._gram_counts[unique[:, 1]], 1)
        for at in np.flatnonzero(overlap >= self.config.min_overlap):
            yield int(unique[at, 0]), int(unique[at, 1]), f"{overlap[at]:.0%} of its {self.config.ngram}-grams"

    def _by_image(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, str]]:
        hashes = hash_images(batch).to_pylist()
        rows = np.repeat(np.arange(len(hashes)), [len(row) for row in hashes])
        pairs, distances = self._hashes.near(stacked([value for row in hashes for value in row]))
        for (query, found), distance in zip(pairs.tolist(), distances.tolist(), strict=True):
            for item in self._hash_items[found].tolist():
                yield int(rows[query]), item, f"an image at {distance} of 128 bits"

    def _by_embedding(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int, str]]:
        for row, own in enumerate(vectors(batch, self.config.embedding_column)):
            if len(own) and len(self._vectors):
                if own.shape[1] != self._vectors.shape[1]:
                    found = f"vectors of {own.shape[1]} numbers, the benchmark's have {self._vectors.shape[1]}"
                    raise invalid(self.config.embedding_column, found)
                cosines = (own @ self._vectors.T).max(axis=0)
                for at in np.flatnonzero(cosines >= self.config.min_cosine).tolist():
                    yield row, int(self._vector_items[at]), f"an embedding at cosine {cosines[at]:.3f}"


@dataclass(frozen=True, kw_only=True)
class ContaminationReport:
    """How much of a benchmark a training set holds. ``seen``: benchmark sample -> (training sample, reason)."""

    benchmark: str
    training: str
    config: MatchConfig
    num_items: int
    # Training rows looked through.
    num_samples: int
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
    index = BenchmarkIndex(open_version(store, benchmark), config or MatchConfig())
    return held_items(index, open_version(store, training))


def held_items(
    index: BenchmarkIndex,
    reader: DatasetReader,
    *,
    split: str = "",
    sources: Sequence[str] = (),
    progress: Callable[[int], None] = lambda rows: None,
) -> ContaminationReport:
    """Looks in the rows of one split and of some sources (all, if empty) for the items of ``index``.

    ``progress`` hears how many rows of the split were read and may raise to stop. Raises ``InvalidArgumentError`` if
    the version has no column of the embeddings that are to be compared.
    """
    seen: dict[str, tuple[str, str]] = {}
    read = num_samples = 0
    for batch in _scan(reader, index.config, split, ("source",) if sources else ()):
        read += batch.num_rows
        if sources:
            batch = batch.filter(pc.is_in(batch.column("source"), pa.array(list(sources), pa.string())))
        num_samples += batch.num_rows
        ids = batch.column("id").to_pylist()
        for match in index.matches(batch):
            seen.setdefault(match.item, (ids[match.row], match.reason))
        progress(read)
    return ContaminationReport(
        benchmark=index.name,
        training=reader.version.name,
        config=index.config,
        num_items=len(index.ids),
        num_samples=num_samples,
        seen=seen,
    )


def _scan(reader: DatasetReader, config: MatchConfig, split: str, further: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    if "embedding" in config.by and config.embedding_column not in reader.column_names:
        raise invalid("embedding_column", f"{reader.version.name} has no column {config.embedding_column!r}")
    rows = _BATCH_ROWS if "image" in config.by else _BATCH_ROWS_WITHOUT_MEDIA
    return reader.scan_columns((*config.reads, *further), split, batch_rows=rows)


def _grams(batch: pa.RecordBatch, config: MatchConfig) -> tuple[NDArray[np.uint64], Ints]:
    """Each row's n-grams, once each, and their rows."""
    grams, offsets = ngram_hashes(joined_texts(batch), config.ngram, config.unit)
    rows = np.repeat(np.arange(batch.num_rows), np.diff(offsets))
    order = np.lexsort((grams, rows))
    grams, rows = grams[order], rows[order]
    new = np.ones(len(grams), bool)
    new[1:] = (grams[1:] != grams[:-1]) | (rows[1:] != rows[:-1])
    return grams[new], rows[new]
