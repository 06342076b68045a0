"""A perceptual hash of images, and near pairs of hashes without comparing all.

The hash is the signs of the differences of neighbours, along rows and along columns, in a thumbnail of grey levels
(dHash): brightness, contrast, scale and compression hardly move it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rebus.data.duplicates import Pairs
from rebus.data.images import decode_image

HASH_BYTES = 16
MAX_DISTANCE = 31
_SIDE = 8
# Multi-index hashing (Norouzi, Punjani and Fleet 2012): of two hashes that differ in d of 128 bits, one of 8 parts
# differs in at most d // 8, so that looking up each part with that many bits flipped misses nothing.
_PARTS = 8
_PART_BITS = 16
_QUERIES_AT_A_TIME = 1 << 14

HashRows = NDArray[np.uint8]


def image_hash(data: bytes, *, field: str = "image") -> bytes:
    """The 128-bit hash of an encoded image; ``InvalidArgumentError`` names ``field`` if it is none."""
    grey = Image.fromarray(decode_image(data, field=field)).convert("L")
    return b"".join(
        np.packbits(np.diff(_thumbnail(grey, *size).astype(np.int16), axis=axis) > 0).tobytes()
        for axis, size in ((1, (_SIDE + 1, _SIDE)), (0, (_SIDE, _SIDE + 1)))
    )


def _thumbnail(grey: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(grey.resize((width, height), Image.Resampling.LANCZOS))


def stacked(hashes: Sequence[bytes]) -> HashRows:
    """uint8 ``[N, 16]`` of hashes."""
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES)


class HashIndex:
    """Hashes ``[N, 16]`` to search for all within a Hamming distance; exact."""

    def __init__(self, hashes: HashRows, max_distance: int) -> None:
        if not 0 <= max_distance <= MAX_DISTANCE:
            raise ValueError(f"max_distance={max_distance} is outside 0 .. {MAX_DISTANCE}")
        self._max_distance = max_distance
        self._unique, member = np.unique(hashes, axis=0, return_inverse=True)  # equal ones would fill one bucket
        self._order = np.argsort(member.reshape(-1), kind="stable")
        self._bounds = np.searchsorted(member.reshape(-1)[self._order], np.arange(len(self._unique) + 1))
        import faiss  # settings name the greatest distance without loading what searches

        self._index = faiss.IndexBinaryMultiHash(8 * HASH_BYTES, _PARTS, _PART_BITS)
        self._index.nflip = max_distance // _PARTS
        if len(self._unique):
            self._index.add(self._unique)

    def near(self, queries: HashRows) -> tuple[Pairs, NDArray[np.int64]]:
        """Pairs (query, smallest index of an equal hash) within the distance, and their distances."""
        pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
        for first in range(0, len(queries) if len(self._unique) else 0, _QUERIES_AT_A_TIME):
            block = np.ascontiguousarray(queries[first : first + _QUERIES_AT_A_TIME])
            # FAISS returns what is nearer than the radius.
            limits, found, found_at = self._index.range_search(block, self._max_distance + 1)
            query = first + np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
            pairs.append(np.stack([query, self._order[self._bounds[:-1]][found_at]], axis=1))
            distances.append(found.astype(np.int64))
        return np.concatenate(pairs), np.concatenate(distances)


def near_pairs(hashes: HashRows, max_distance: int) -> Pairs:
    """int64 ``[E, 2]``: enough pairs within the distance to connect all that are, equal hashes as a star."""
    pairs, _ = HashIndex(hashes, max_distance).near(hashes)
    return pairs[pairs[:, 0] != pairs[:, 1]]
