"""Vectors of images and texts, for the curators that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus import registry
from rebus.data.columns import images, texts
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.registry import register
from rebus.store import Store

IMAGE_EMBEDDINGS = "image_embeddings"
TEXT_EMBEDDINGS = "text_embeddings"
_INPUTS_A_CALL = 8192
_VECTORS = pa.list_(pa.list_(pa.float32()))


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """The embedder, e.g. ``{"name": "dual-encoder", "model_version": "models/x/versions/1"}``."""

    embedder: dict[str, Any] = registry.component("embedder", "dual-encoder")


@register("curator", "embed", config=EmbedConfig)
class Embed(Curator):
    """Adds the columns ``image_embeddings`` and ``text_embeddings``: a vector for each image and each text segment."""

    reads = ("segments", "media")
    adds: Mapping[str, pa.DataType] = {IMAGE_EMBEDDINGS: _VECTORS, TEXT_EMBEDDINGS: _VECTORS}
    only_measures = True

    def __init__(self, config: EmbedConfig) -> None:
        self._config = config
        self._embedder: Any = None

    def prepare(self, store: Store) -> None:
        """Loads the embedder's model."""
        self._embedder = registry.build("embedder", self._config.embedder, store, field="embed.embedder")

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Keeps every row."""
        values = {
            IMAGE_EMBEDDINGS: _embedded(images(observed), self._embedder.embed_images),
            TEXT_EMBEDDINGS: _embedded(texts(observed), self._embedder.embed_texts),
        }
        return Judgement([KEEP] * observed.num_rows, values)


def _embedded(rows: Sequence[Sequence[Any]], embed: Any) -> pa.Array:
    """All rows together, then cut apart again."""
    items = list(chain.from_iterable(rows))
    calls = [embed(items[start : start + _INPUTS_A_CALL]) for start in range(0, max(len(items), 1), _INPUTS_A_CALL)]
    flat: NDArray[np.float32] = np.concatenate(calls)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    values = pa.array(flat.reshape(-1), pa.float32())
    inner = pa.ListArray.from_arrays(np.arange(0, flat.size + 1, max(flat.shape[1], 1), dtype=np.int32), values)
    return pa.ListArray.from_arrays(offsets.astype(np.int32), inner)
