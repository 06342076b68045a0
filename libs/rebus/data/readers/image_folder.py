"""Captioned pictures: a folder of images and a table (CSV, TSV or JSONL) that captions them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rebus.data.readers.base import Location
from rebus.data.readers.captioned import CaptionedConfig, CaptionedReader
from rebus.data.readers.pictures import Pictures
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
        self._pictures = Pictures(self._root, config.limits)

    def load(self, name: str, values: dict[str, Any]) -> tuple[bytes, Segment, dict[str, Any]]:
        """The picture, which has decoded whole: a path, or an address of a host that images may be fetched from."""
        return self._pictures.named(name), Segment(type="image", media=0), {}
