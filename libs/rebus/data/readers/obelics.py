"""Interleaved web documents in the format of OBELICS: two lists, and at each place either a text or an image.

The format is that of OBELICS (Laurençon et al., arXiv 2306.16527): columns ``texts`` and ``images`` of equal length, of
which one holds null wherever the other holds something. Images are addresses, paths, or bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rebus.data.readers.base import Draft, DraftingReader, Location, Quarantined, each_draft
from rebus.data.readers.files import check_inside, each_file, list_files
from rebus.data.readers.interleaved import Document, InterleavedSettings, Picture
from rebus.data.readers.pictures import Pictures
from rebus.data.readers.tables import SUFFIXES, table_rows
from rebus.data.sample import Sample
from rebus.errors import invalid
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class ObelicsConfig(InterleavedSettings):
    """Where the documents are and what the columns are called."""

    # Parquet or Arrow files inside the folder; empty: every one below it. A URI that names a file reads that one.
    files: list[str] = field(default_factory=list)
    texts_column: str = "texts"
    images_column: str = "images"
    # Columns kept as the sample's metadata.
    metadata_columns: list[str] = field(default_factory=list)
    # Folder inside the source's folder that image paths are relative to.
    image_root: str = ""


@register("reader", "obelics", config=ObelicsConfig)
class ObelicsReader(DraftingReader):
    """Interleaved documents in OBELICS' Parquet format; images as bytes, in a folder or on the web."""

    def __init__(self, config: ObelicsConfig, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._files = [location.file] if location.file else config.files
        self._source = config.source or location.label
        self._pictures = Pictures(self._root, config.limits, folder=config.image_root)
        for name in self._files:
            check_inside(self._root, name)

    def drafts(self) -> Iterator[Draft | Quarantined]:
        yield from each_file(self._files or list_files(self._root, SUFFIXES), self._read)

    def _read(self, name: str) -> Iterator[Draft | Quarantined]:
        config = self._config
        columns = [config.texts_column, config.images_column, *config.metadata_columns]
        return each_draft(table_rows(self._root, name, columns, config.limits), self._sample)

    def _sample(self, where: str, row: dict[str, Any]) -> Sample:
        config = self._config
        texts, images = row[config.texts_column], row[config.images_column]
        if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
            raise invalid(config.texts_column, f"expected a list as long as that of {config.images_column!r}")
        metadata = {column: row[column] for column in config.metadata_columns}
        return Document(config).sample(self._source, where, self._parts(texts, images), metadata)

    def _parts(self, texts: list[Any], images: list[Any]) -> Iterator[str | Picture]:
        for place, (text, image) in enumerate(zip(texts, images, strict=True)):
            where = f"{self._config.images_column}[{place}]"
            if text is not None and image is not None:
                raise invalid(where, "a text and an image at one place")
            if isinstance(text, str):
                yield text
            elif text is not None:
                raise invalid(f"{self._config.texts_column}[{place}]", f"expected text, found {type(text).__name__}")
            elif image is not None:
                name = image if isinstance(image, str) else where
                yield Picture(name, lambda image=image, where=where: self._pictures.held(image, where))
