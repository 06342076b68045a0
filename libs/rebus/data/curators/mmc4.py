"""Pictures of a page set beside the sentences that they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.curators.columns import vectors
from rebus.data.curators.embed import IMAGE_EMBEDDINGS, TEXT_EMBEDDINGS
from rebus.errors import invalid
from rebus.registry import register

SIMILARITIES = "sentence_similarities"


@dataclass(frozen=True, kw_only=True)
class Mmc4Config:
    """Which embeddings are compared, and below which cosine an image is left out."""

    min_similarity: float = 0.15
    image_column: str = IMAGE_EMBEDDINGS
    text_column: str = TEXT_EMBEDDINGS


@register("curator", "mmc4", config=Mmc4Config, paper="mmc4")
class Mmc4(Curator):
    """Moves each image of a document before the sentence that it matches; drops documents whose images match none.

    Sentences are text segments. The images are dealt so that the sum of cosines is greatest and no sentence gets two
    (linear assignment); those below ``min_similarity`` leave the document, though their bytes stay in the version.
    Adds ``sentence_similarities``: one cosine an image of the document as it was, null where it left.
    """

    adds: Mapping[str, pa.DataType] = {SIMILARITIES: pa.list_(pa.float32())}
    rewrites = ("segments", "num_segments")

    def __init__(self, config: Mmc4Config) -> None:
        self._config = config
        self.reads = ("id", "segments", config.image_column, config.text_column)

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Deals the images of every document."""
        columns = (vectors(observed, name) for name in (self._config.image_column, self._config.text_column))
        rows = zip(*(observed.column(name).to_pylist() for name in ("id", "segments")), *columns, strict=True)
        judged = [self._judge(*row) for row in rows]
        reasons, similarities, segments = zip(*judged, strict=True) if judged else ((), (), ())
        lengths = [None if row is None else len(row) for row in segments]
        return Judgement(reasons, {SIMILARITIES: similarities, "segments": segments, "num_segments": lengths})

    def _judge(
        self, identifier: str, segments: Sequence[Any], images: NDArray[np.float32], texts: NDArray[np.float32]
    ) -> tuple[str, list[float | None] | None, list[Any] | None]:
        """The reason, the similarities, and the segments in their new order; ``None`` where nothing changes."""
        pictures = [segment for segment in segments if segment["type"] == "image"]
        _check(identifier, self._config.image_column, len(images), "images", len(pictures))
        if not pictures:
            return KEEP, None, None
        sentences = sum(segment["type"] == "text" for segment in segments)
        _check(identifier, self._config.text_column, len(texts), "texts", sentences)
        cosines = images @ texts.T if sentences else np.zeros((len(images), 0), np.float32)
        dealt = assign(cosines, self._config.min_similarity)
        similarities = [float(cosines[i, j]) if j >= 0 else None for i, j in enumerate(dealt)]
        if (dealt < 0).all():
            return f"no image matches a sentence by {self._config.min_similarity:g}", similarities, None
        return KEEP, similarities, _placed(segments, pictures, dealt)


def assign(similarity: NDArray[Any], min_similarity: float) -> NDArray[np.int64]:
    """int64 ``[I]``: the sentence of each image, or -1, given similarities ``[I, S]``.

    Images that match no sentence are out first, so that they take none from others; the rest maximise the sum.
    """
    dealt = np.full(len(similarity), -1)
    rows = np.flatnonzero((similarity >= min_similarity).any(axis=1))
    images, sentences = linear_sum_assignment(similarity[rows], maximize=True)
    good = similarity[rows[images], sentences] >= min_similarity
    dealt[rows[images[good]]] = sentences[good]
    return dealt


def _placed(segments: Sequence[Any], pictures: Sequence[Any], dealt: NDArray[np.int64]) -> list[Any]:
    shown = {int(sentence): picture for picture, sentence in zip(pictures, dealt, strict=True) if sentence >= 0}
    placed, sentence = [], 0
    for segment in segments:
        if segment["type"] == "text":
            placed += [shown[sentence]] if sentence in shown else []
            sentence += 1
        if segment["type"] != "image":
            placed.append(segment)
    return placed


def _check(identifier: str, column: str, found: int, what: str, expected: int) -> None:
    if found != expected:
        raise invalid(column, f"sample[{identifier}] has {found} vectors for {expected} {what}")
