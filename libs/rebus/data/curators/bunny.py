"""A coreset of image-text pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus.data import duplicates
from rebus.data.clusters import clustered, matrix
from rebus.data.columns import vectors
from rebus.data.curators.alignment import SIMILARITY, alignment
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.curators.embed import IMAGE_EMBEDDINGS, TEXT_EMBEDDINGS
from rebus.registry import register

Vectors = NDArray[np.float32]
Window = tuple[float, float]

CLUSTER = "cluster"
_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True, kw_only=True)
class BunnyConfig:
    """Clusters, the cosine from which two images are near-duplicates, and the ranks that stay."""

    threshold: float = 0.95
    # 0: one for every 512 rows.
    clusters: int = 0
    # Shares of the ranking, most similar first: by image and text, then by image and centre of its cluster.
    text_window: Window = (0.4, 0.6)
    centroid_window: Window = (0.15, 0.35)
    seed: int = 0
    image_column: str = IMAGE_EMBEDDINGS
    text_column: str = TEXT_EMBEDDINGS

    def __post_init__(self) -> None:
        for low, high in (self.text_window, self.centroid_window):
            if not 0 <= low < high <= 1:
                raise ValueError(f"expected a window 0 <= low < high <= 1, found ({low}, {high})")
        if not 0 < self.threshold <= 1 or self.clusters < 0:
            raise ValueError(f"threshold={self.threshold} or clusters={self.clusters} is out of range")


@register("curator", "bunny", config=BunnyConfig, paper="bunny")
class Bunny(Curator):
    """Keeps a coreset: one image of each near-duplicate group of a cluster, then two windows of similarity ranks.

    Which rows stay does not depend on their order: rows are taken by id. A sample counts with its first image;
    those without image or text stay. Adds ``cluster`` and ``image_text_similarity``.
    """

    adds: Mapping[str, pa.DataType] = {CLUSTER: pa.int32(), SIMILARITY: pa.float32()}
    whole = True

    def __init__(self, config: BunnyConfig) -> None:
        self._config = config
        self.reads = ("id", config.image_column, config.text_column)

    def observe(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The vector of each row's first image, and how well it goes with the row's text."""
        images, texts = (vectors(batch, name) for name in self.reads[1:])
        similarity = [alignment(image[:1], text) for image, text in zip(images, texts, strict=True)]
        first = pa.array([image[:1].tobytes() for image in images], pa.binary())
        return pa.record_batch(
            {"id": batch.column("id"), "image": first, SIMILARITY: pa.array(similarity, pa.float32())}
        )

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Takes the pairs in the order of their ids."""
        ids = np.array(observed.column("id").to_pylist(), dtype=object)
        similarity = observed.column(SIMILARITY).to_numpy(zero_copy_only=False)
        pairs = np.flatnonzero(~np.isnan(similarity))
        pairs = pairs[np.argsort(ids[pairs], kind="stable")]
        reasons = np.full(len(ids), KEEP, object)
        cluster = np.full(len(ids), -1, np.int32)
        if len(pairs):
            images = matrix(observed.column("image").take(pa.array(pairs)).to_pylist(), self._config.image_column)
            cluster[pairs], reasons[pairs] = coreset(images, similarity[pairs], ids[pairs], self._config)
        clusters = pa.array(cluster, mask=cluster < 0)
        return Judgement(reasons.tolist(), {CLUSTER: clusters, SIMILARITY: observed.column(SIMILARITY)})


def coreset(
    images: Vectors, similarity: Vectors, ids: NDArray[np.object_], config: BunnyConfig
) -> tuple[NDArray[np.int32], NDArray[np.object_]]:
    """Cluster and reason (``KEEP``: stays) of each pair, given unit vectors ``[N, D]`` and image-text cosines."""
    cluster, nearness = clustered(images, config.clusters, config.seed)
    first = duplicates.firsts(len(images), near_pairs(images, cluster, config.threshold))
    reasons = np.array([f"nearly repeats the image of {ids[at]}" for at in first], object)
    left = np.flatnonzero(first == np.arange(len(images)))
    reasons[left] = KEEP
    for what, scores, window in (
        ("image and text", similarity, config.text_window),
        ("image and centre of its cluster", nearness, config.centroid_window),
    ):
        ranks = np.argsort(-scores[left], kind="stable")
        low, high = (round(share * len(left)) for share in window)
        outside = left[np.concatenate([ranks[:low], ranks[high:]])]
        reasons[outside] = f"the similarity of {what} ranks outside {window[0]:.0%} to {window[1]:.0%}"
        left = np.sort(left[ranks[low:high]])
    return cluster, reasons


def near_pairs(images: Vectors, cluster: NDArray[np.int32], threshold: float) -> duplicates.Pairs:
    """int64 ``[E, 2]``: pairs of one cluster whose cosine is at least ``threshold``."""
    order = np.argsort(cluster, kind="stable")
    found = [np.empty((0, 2), np.int64)]
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        for start in range(0, len(members), _ROWS_AT_A_TIME):
            block = members[start : start + _ROWS_AT_A_TIME]
            left, right = np.nonzero(images[block] @ images[members].T >= threshold)
            found.append(np.stack([block[left], members[right]], axis=1)[left + start < right])
    return np.concatenate(found)
