"""Curators decide which rows of a version stay; see ``base.Curator`` and the README for how to add one."""

from rebus.data.curators import (
    alignment,
    bunny,
    contamination,
    embed,
    exact_dedup,
    image_hash_dedup,
    image_size,
    language_id,
    minhash_dedup,
    mmc4,
    opt_out,
    pii_scrub,
    quality_clusters,
    text_heuristics,
    text_length,
    text_quality,
)
from rebus.data.curators.base import KEEP, Curator, Judgement

__all__ = [
    "KEEP",
    "Curator",
    "Judgement",
    "alignment",
    "bunny",
    "contamination",
    "embed",
    "exact_dedup",
    "image_hash_dedup",
    "image_size",
    "language_id",
    "minhash_dedup",
    "mmc4",
    "opt_out",
    "pii_scrub",
    "quality_clusters",
    "text_heuristics",
    "text_length",
    "text_quality",
]
