"""MinHash sketches of sets and the pairs of them that locality-sensitive hashing proposes.

Two sets of Jaccard similarity s agree in each of a sketch's places with probability s (Broder 1997), so that their
sketches share one of b bands of r places with probability 1 - (1 - s^r)^b. A place holds the low 16 bits of the
minimum (Li and König 2010), which adds at most 2^-16 to the probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.data.duplicates import Pairs
from rebus.data.shingles import Hashes, Offsets, mixed

Sketches = NDArray[np.uint16]

# Sets whose hashes are worked on together, so that they stay in the cache of a core.
_SETS_AT_A_TIME = 512
# Of the members of one band's bucket, each is paired with so many that follow it: a bucket that holds half the
# corpus costs no more than linear time, and its equal members are still chained into one group.
_NEIGHBOURS = 16
_PAIRS_AT_A_TIME = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Bands:
    """How a sketch is cut: ``bands`` of ``rows`` places."""

    bands: int = 25
    rows: int = 5
    seed: int = 0

    @property
    def places(self) -> int:
        """Places of a sketch."""
        return self.bands * self.rows

    def match_rate(self, similarity: NDArray[np.float64]) -> NDArray[np.float64]:
        """The chance that two sets of that Jaccard similarity are proposed."""
        return 1 - (1 - similarity**self.rows) ** self.bands


def sketch(hashes: Hashes, offsets: Offsets, bands: Bands) -> Sketches:
    """uint16 ``[N, places]``; an empty set's sketch is all zeros."""
    rng = np.random.default_rng(bands.seed)
    factors = rng.integers(0, 1 << 31, bands.places, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    terms = rng.integers(0, 1 << 32, bands.places, dtype=np.uint32)
    full = np.flatnonzero(np.diff(offsets))
    out = np.zeros((len(offsets) - 1, bands.places), np.uint16)
    for first in range(0, len(full), _SETS_AT_A_TIME):
        rows = full[first : first + _SETS_AT_A_TIME]
        begin = offsets[rows[0]]
        high = (hashes[begin : offsets[rows[-1] + 1]] >> np.uint64(32)).astype(np.uint32)
        starts = offsets[rows] - begin
        permuted = np.empty_like(high)
        for place, (factor, term) in enumerate(zip(factors, terms, strict=True)):
            np.multiply(high, factor, out=permuted)  # modulo 2^32: an odd factor makes it a permutation
            permuted += term
            out[rows, place] = np.minimum.reduceat(permuted, starts).astype(np.uint16)
    return out


def similarity(sketches: Sketches, pairs: Pairs) -> NDArray[np.float32]:
    """float32 ``[E]``: the share of places in which each pair agrees, an estimate of its Jaccard similarity."""
    out = np.empty(len(pairs), np.float32)
    for first in range(0, len(pairs), _PAIRS_AT_A_TIME):
        left, right = pairs[first : first + _PAIRS_AT_A_TIME].T
        out[first : first + len(left)] = (sketches[left] == sketches[right]).mean(axis=1)
    return out


def similar_pairs(sketches: Sketches, bands: Bands, threshold: float) -> Pairs:
    """int64 ``[E, 2]``: proposed pairs, smaller index first, whose estimated similarity is at least ``threshold``."""
    found = [np.empty((0, 2), np.int64)]
    for band in range(bands.bands):
        pairs = _sharing(sketches[:, band * bands.rows : (band + 1) * bands.rows])
        found.append(pairs[similarity(sketches, pairs) >= threshold])
    return np.unique(np.concatenate(found), axis=0)


def _sharing(band: Sketches) -> Pairs:
    """Pairs of rows that are equal; of large groups, neighbours only."""
    keys = np.zeros(len(band), np.uint64)
    for place in range(band.shape[1]):
        keys = mixed(keys + band[:, place] + np.uint64(1))
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    found = [np.empty((0, 2), np.int64)]
    for distance in range(1, _NEIGHBOURS + 1):
        at = np.flatnonzero(keys[:-distance] == keys[distance:])
        if not len(at):
            break
        found.append(np.stack([order[at], order[at + distance]], axis=1))
    return np.concatenate(found)
