"""How well images and text of a sample go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.curators.columns import vectors
from rebus.data.curators.embed import IMAGE_EMBEDDINGS, TEXT_EMBEDDINGS
from rebus.registry import register

SIMILARITY = "image_text_similarity"


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Which embeddings are compared, and the least cosine that stays."""

    min_similarity: float = 0.2
    image_column: str = IMAGE_EMBEDDINGS
    text_column: str = TEXT_EMBEDDINGS


@register("curator", "image-text-alignment", config=AlignmentConfig)
class Alignment(Curator):
    """Drops samples whose images do not go with their text; samples without either stay.

    Adds ``image_text_similarity``: the mean over the sample's images of the cosine to the text nearest to each. The
    vectors come from any columns, or from the curator ``embed`` before this one.
    """

    adds: Mapping[str, pa.DataType] = {SIMILARITY: pa.float32()}

    def __init__(self, config: AlignmentConfig) -> None:
        self._config = config
        self.reads = (config.image_column, config.text_column)

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Compares each row's vectors."""
        columns = (vectors(observed, name) for name in self.reads)
        similarities = [alignment(images, texts) for images, texts in zip(*columns, strict=True)]
        return Judgement([self._judge(value) for value in similarities], {SIMILARITY: similarities})

    def _judge(self, similarity: float | None) -> str:
        if similarity is None or similarity >= self._config.min_similarity:
            return KEEP
        return f"image and text go together by {similarity:.3f}, less than {self._config.min_similarity:g}"


def alignment(images: NDArray[np.float32], texts: NDArray[np.float32]) -> float | None:
    """Mean over images ``[I, D]`` of the greatest cosine to one of ``[T, D]``; ``None`` without images or texts."""
    return float((images @ texts.T).max(axis=1).mean()) if len(images) and len(texts) else None
