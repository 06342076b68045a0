"""Captioned pictures: a folder of images and a table (CSV, TSV or JSONL) that captions them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rebus.data.readers.base import Location, checked_image
from rebus.data.readers.captioned import CaptionedConfig, CaptionedReader
from rebus.data.sample import Segment
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class ImageFolderConfig(CaptionedConfig):
    """Captioned images."""

    image_column: str = "image"

    @property
    def media_column(self) -> str:
        """The column that holds the images' paths."""
        return self.image_column


@register("reader", "image-folder", config=ImageFolderConfig)
class ImageFolderReader(CaptionedReader[ImageFolderConfig]):
    """Captioned images: a folder and a CSV, TSV or JSONL table of image paths and captions."""

    def __init__(self, config: ImageFolderConfig, location: Location) -> None:
        super().__init__(config, location)
        self.max_bytes = config.limits.image.max_bytes

    def segment(self, data: bytes, path: str, values: dict[str, Any]) -> tuple[Segment, dict[str, Any]]:
        """The picture, which has decoded whole."""
        checked_image(data, path, self._config.limits)
        return Segment(type="image", media=0), {}
