"""Curators decide which rows of a version stay; see ``base.Curator`` and the README for how to add one."""

from rebus.data.curators import (
    alignment,
    bunny,
    embed,
    exact_dedup,
    image_hash_dedup,
    image_size,
    minhash_dedup,
    mmc4,
    text_length,
)
from rebus.data.curators.base import KEEP, Curator, Judgement

__all__ = [
    "KEEP",
    "Curator",
    "Judgement",
    "alignment",
    "bunny",
    "embed",
    "exact_dedup",
    "image_hash_dedup",
    "image_size",
    "minhash_dedup",
    "mmc4",
    "text_length",
]
