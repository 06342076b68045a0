"""Images that are too small, or too long for their width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.curators.columns import images
from rebus.data.images import image_size
from rebus.registry import register

MIN_SIDE = "min_image_side"


@dataclass(frozen=True, kw_only=True)
class ImageSizeConfig:
    """Bounds that every image of a sample must meet."""

    # Pixels of the shorter side.
    min_side: int = 32
    # Longer side divided by shorter side.
    max_aspect: float = 20.0

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_aspect < 1:
            raise ValueError(f"min_side={self.min_side} and max_aspect={self.max_aspect} must be at least 1")


@register("curator", "image-size", config=ImageSizeConfig)
class ImageSize(Curator):
    """Drops samples with an image that is too small or too elongated; samples without images stay.

    Adds the column ``min_image_side``: the shortest side of the sample's images in pixels, null without images.
    """

    reads = ("segments", "media")
    adds: Mapping[str, pa.DataType] = {MIN_SIDE: pa.int32()}

    def __init__(self, config: ImageSizeConfig) -> None:
        self._config = config

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Reads each image's header; no pixels are decoded."""
        sizes = [[image_size(data) for data in media] for media in images(observed)]
        shortest = [min((min(size) for size in row), default=None) for row in sizes]
        return Judgement([self._judge(row) for row in sizes], {MIN_SIDE: shortest})

    def _judge(self, sizes: Sequence[tuple[int, int]]) -> str:
        for index, (width, height) in enumerate(sizes):
            if min(width, height) < self._config.min_side:
                return f"image {index} is {width}x{height}, its shorter side below {self._config.min_side}"
            if max(width, height) > self._config.max_aspect * min(width, height):
                return f"image {index} is {width}x{height}, its aspect above {self._config.max_aspect:g}"
        return KEEP
