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
        self._pictures = Pictures(location.root, config.limits)

    def read(self, path: str) -> bytes:
        """The picture, which has decoded whole: a file, or what lies at an address that may be fetched from."""
        return self._pictures.named(path)

    def segment(self, data: bytes, path: str, values: dict[str, Any]) -> tuple[Segment, dict[str, Any]]:
        return Segment(type="image", media=0), {}
