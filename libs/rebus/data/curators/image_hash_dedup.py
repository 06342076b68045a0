"""Pictures that were saved, scaled or lightly cropped again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus.data import duplicates
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.curators.columns import fixed_bytes, images
from rebus.data.image_hash import HASH_BYTES, MAX_DISTANCE, image_hash, near_pairs
from rebus.registry import register

IMAGE_HASHES = "image_hashes"
HASHES_TYPE = pa.list_(pa.binary(HASH_BYTES))


@dataclass(frozen=True, kw_only=True)
class ImageHashDedupConfig:
    """Two images count as one if so few of the 128 bits of their hashes differ."""

    max_distance: int = 14

    def __post_init__(self) -> None:
        if not 0 <= self.max_distance <= MAX_DISTANCE:
            raise ValueError(f"max_distance={self.max_distance} is outside 0 .. {MAX_DISTANCE}")


@register("curator", "image-hash-dedup", config=ImageHashDedupConfig)
class ImageHashDedup(Curator):
    """Drops a sample all of whose images nearly repeat images of samples that stay; without images it stays.

    Adds the column ``image_hashes``: the perceptual hash of each of the sample's images.
    """

    reads = ("id", "segments", "media")
    adds: Mapping[str, pa.DataType] = {IMAGE_HASHES: HASHES_TYPE}
    whole = True

    def __init__(self, config: ImageHashDedupConfig) -> None:
        self._config = config

    def observe(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The hashes of each row's images."""
        return pa.record_batch({"id": batch.column("id"), IMAGE_HASHES: hash_images(batch)})

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Groups near images, then walks through the rows in their order."""
        column = observed.column(IMAGE_HASHES)
        hashes = fixed_bytes(column.flatten())
        groups = duplicates.firsts(len(hashes), near_pairs(hashes, self._config.max_distance))
        reasons = _judge(observed.column("id").to_pylist(), groups, column.offsets.to_numpy())
        return Judgement(reasons, {IMAGE_HASHES: column})


def hash_images(batch: pa.RecordBatch) -> pa.Array:
    """The hashes of the images that each row shows."""
    ids = batch.column("id").to_pylist()
    hashes = [
        [image_hash(data, field=f"sample[{identifier}].image[{at}]") for at, data in enumerate(row)]
        for identifier, row in zip(ids, images(batch), strict=True)
    ]
    return pa.array(hashes, HASHES_TYPE)


def _judge(ids: list[str], groups: NDArray[np.int64], offsets: NDArray[np.int32]) -> list[str]:
    reasons = []
    owner: dict[int, str] = {}
    for at, identifier in enumerate(ids):
        own = groups[offsets[at] : offsets[at + 1]].tolist()
        if own and all(group in owner for group in own):
            reasons.append(f"nearly repeats the images of {owner[own[0]]}")
            continue
        reasons.append(KEEP)
        for group in own:
            owner.setdefault(group, identifier)
    return reasons
