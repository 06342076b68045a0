"""The two sizes of the quickstart: ``full`` meets the bars, ``smoke`` only shows that every step works."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Size(StrEnum):
    """How much is learned."""

    FULL = "full"
    SMOKE = "smoke"


# What differs from the pipeline's own defaults.
ARGUMENTS: Mapping[Size, Mapping[str, Any]] = {
    Size.FULL: {},
    Size.SMOKE: {
        "mllm_sources": [{"reader": "scenes", "settings": {"num_scenes": 300, "num_pairs": 60, "num_texts": 20}}],
        "mllm_recipe": "smoke-scenes",
        "embedder_sources": [{"reader": "emoji", "settings": {"languages": ["en"]}}],
        "embedder_recipe": "smoke-emoji",
    },
}


def arguments(size: Size, seed: int, revision: str) -> dict[str, Any]:
    """The pipeline's arguments; ``revision`` enters every request, so another one makes everything anew."""
    return {**ARGUMENTS[size], "seed": seed, "revision": revision}
