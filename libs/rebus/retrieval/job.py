"""Builds an index as a job, and keeps built ones at hand for search."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus import config as configs
from rebus import registry
from rebus.data.dataset import DatasetReader, open_version
from rebus.errors import FailedPreconditionError, NotFoundError, invalid
from rebus.jobs.context import JobContext
from rebus.models import feature_cache
from rebus.models.feature_cache import FeatureKey
from rebus.retrieval.embedder import ARCHITECTURES, DualEncoderEmbedder, Embedder
from rebus.retrieval.search import SearchIndex, build_index
from rebus.retrieval.storage import HEADER, Header, open_index, publish_index
from rebus.store import Store, documents, manifests, model_versions
from rebus.v1.common_pb2 import JobStatus, Manifest
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.retrieval_pb2 import Index

DEFAULT_ALGORITHM = "flat"
# Indexes that one process keeps open.
_CAPACITY = 8
# Rows whose features are embedded together.
_EMBED_ROWS = 1024
# Images read and embedded together where nothing is cached.
_EMBED_IMAGES = 64
# Share of the job that embedding takes.
_EMBEDDING_SHARE = 0.9


def checked_index(store: Store, index: Index) -> Index:
    """A new ``Index`` ready to be queued, its model's alias resolved and its defaults filled in.

    Raises ``InvalidArgumentError`` naming an unknown algorithm or split, ``NotFoundError`` naming a missing model or
    dataset version, ``FailedPreconditionError`` if the model does not embed.
    """
    algorithm = index.algorithm or DEFAULT_ALGORITHM
    registry.get("index", algorithm, field="index.algorithm")
    model = model_versions.get(store, index.model_version)
    if model.architecture not in ARCHITECTURES:
        needed = " or ".join(ARCHITECTURES)
        raise FailedPreconditionError(f"{model.name} is a {model.architecture}; an index needs a {needed}")
    dataset = documents.get(store, DatasetVersion, index.dataset_version)
    if index.split and index.split not in dataset.splits:
        known = ", ".join(sorted(dataset.splits))
        raise invalid("index.split", f"{dataset.name} has no {index.split!r} rows; splits: {known}")
    return Index(model_version=model.name, dataset_version=dataset.name, split=index.split, algorithm=algorithm)


def run(ctx: JobContext) -> None:
    """Embeds the first image of every row of the dataset version's split, builds the index and publishes it."""
    document = ctx.document(Index)
    try:  # an earlier attempt may have died after its manifest and before its document
        manifest = manifests.read(ctx.store, ctx.name)
    except NotFoundError:
        manifest = _build(ctx, document)
    header = configs.build(
        Header, configs.parse_yaml(manifests.read_part(ctx.store, ctx.name, HEADER).decode(), where=HEADER)
    )

    def fill(index: Index) -> None:
        index.num_vectors, index.dimension, index.digest = header.num_vectors, header.dimension, manifest.digest

    ctx.update(Index, fill)
    ctx.emit("metrics", {"num_vectors": header.num_vectors, "dimension": header.dimension})


def _build(ctx: JobContext, document: Index) -> Manifest:
    reader = open_version(ctx.store, document.dataset_version)
    model = model_versions.get(ctx.store, document.model_version)
    with manifests.fetch(ctx.store, model.name, ctx.cache_dir) as folder:
        embedder = Embedder.load(folder)
    images = _Images(reader, document.split)
    if not len(images):
        raise invalid("index.split", f"{reader.version.name} has no images in split {document.split!r}")
    vectors = _embed(ctx, embedder, images, reader.version.digest)
    ctx.progress(_EMBEDDING_SHARE, f"building a {document.algorithm} index of {len(vectors)} vectors")
    ids = reader.table(["id"], images.rows).column("id").to_pylist()
    index = build_index({"name": document.algorithm}, vectors, images.rows, ids)
    ctx.check_cancelled()
    return publish_index(ctx.store, ctx.name, index, document.algorithm)


def _embed(ctx: JobContext, embedder: Embedder, images: _Images, dataset_digest: str) -> NDArray[np.float32]:
    """Unit vectors of the images."""

    def progress(done: int, total: int) -> None:
        ctx.check_cancelled()
        ctx.progress(_EMBEDDING_SHARE * done / total, f"embedding images: {done} of {total}")

    if isinstance(embedder, DualEncoderEmbedder):
        return _embed_features(ctx, embedder, images, dataset_digest, progress)
    vectors: list[NDArray[np.float32]] = []
    for start in range(0, len(images), _EMBED_IMAGES):
        progress(start, len(images))
        vectors.append(embedder.embed_images(images.take(images.rows[start : start + _EMBED_IMAGES].tolist())))
    return np.concatenate(vectors)


def _embed_features(
    ctx: JobContext,
    embedder: DualEncoderEmbedder,
    images: _Images,
    dataset_digest: str,
    progress: Callable[[int, int], None],
) -> NDArray[np.float32]:
    """Through the feature cache: another model over the same encoder costs a moment."""
    key = FeatureKey(
        dataset=dataset_digest,
        encoder=feature_cache.module_digest(embedder.model.vision_encoder),
        preprocess=embedder.processor.digest,
    )
    features = feature_cache.cached_features(
        ctx.cache_dir,
        key,
        images.rows,
        images.take,
        embedder.model.vision_encoder,
        embedder.processor,
        progress=progress,
    )
    chunks = (np.arange(start, min(start + _EMBED_ROWS, len(images))) for start in range(0, len(images), _EMBED_ROWS))
    return np.concatenate([embedder.embed_features(features.take(chunk)) for chunk in chunks])


class _Images:
    """The first image of each row that has one."""

    def __init__(self, reader: DatasetReader, split: str) -> None:
        rows = reader.row_ids(split)
        shown = np.concatenate([_show_image(batch.column("segments")) for batch in reader.scan_columns(["segments"])])
        self.rows: NDArray[np.int64] = rows[shown[rows]]
        self._reader = reader

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Sequence[int]) -> list[bytes]:
        """Encoded images of the dataset version's ``rows``."""
        samples = self._reader.take(rows)
        return [image for sample in samples if (image := sample.first_image) is not None]


def _show_image(segments: pa.ListArray) -> NDArray[np.bool_]:
    """bool ``[rows]``: which rows hold an image segment."""
    rows = np.repeat(np.arange(len(segments)), segments.value_lengths().to_numpy())
    images = np.array(segments.flatten().field("type").to_pylist()) == "image"
    return np.bincount(rows[images], minlength=len(segments)) > 0


class IndexCache:
    """Published indexes kept open between searches, the least recently used dropped."""

    def __init__(self, store: Store, cache_dir: Path) -> None:
        self._store, self._cache_dir = store, cache_dir
        self._open: OrderedDict[str, SearchIndex] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> tuple[Index, SearchIndex]:
        """The index's document and the index.

        Raises ``NotFoundError`` if there is none, ``FailedPreconditionError`` unless it was built.
        """
        document = documents.get(self._store, Index, name)
        if document.job.state != JobStatus.SUCCEEDED:
            state = JobStatus.State.Name(document.job.state)
            raise FailedPreconditionError(f"{name} is {state}; only an index that SUCCEEDED can be searched")
        with self._lock:
            if document.digest not in self._open:
                self._open[document.digest] = open_index(self._store, name, self._cache_dir)
            self._open.move_to_end(document.digest)
            while len(self._open) > _CAPACITY:
                self._open.popitem(last=False)
            return document, self._open[document.digest]
