"""Interleaved web documents in the format of MMC4: sentences, and images assigned to sentences.

The format is that of Multimodal C4 (Zhu et al., arXiv 2304.06939): one JSON object a line with ``text_list`` and
``image_info``, whose entries say which sentence an image belongs to (``matched_text_index``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rebus.data.readers.base import Draft, DraftingReader, Location, Quarantined, each_draft
from rebus.data.readers.files import check_inside, each_file, json_lines, list_files
from rebus.data.readers.interleaved import Document, InterleavedSettings, Picture
from rebus.data.readers.pictures import Pictures
from rebus.data.sample import Sample
from rebus.errors import NotFoundError, invalid
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class Mmc4Config(InterleavedSettings):
    """Where the documents and their images are."""

    # JSONL files inside the folder; empty: every .jsonl file below it. A URI that names a file reads that one.
    files: list[str] = field(default_factory=list)
    # Folder inside the source's folder that image names are relative to.
    image_root: str = ""
    # Where an image stands: before or after the sentence it belongs to.
    image_position: Literal["before", "after"] = "before"
    # Images less similar to their sentence than this (``matched_sim``) are not taken.
    min_similarity: float = -1.0


@register("reader", "mmc4", config=Mmc4Config)
class Mmc4Reader(DraftingReader):
    """Interleaved documents in MMC4's JSONL format; images in a folder, in the line (base64) or on the web."""

    def __init__(self, config: Mmc4Config, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._files = [location.file] if location.file else config.files
        self._source = config.source or location.label
        self._pictures = Pictures(self._root, config.limits, folder=config.image_root)
        for name in self._files:
            check_inside(self._root, name)

    def drafts(self) -> Iterator[Draft | Quarantined]:
        yield from each_file(self._files or list_files(self._root, (".jsonl",)), self._read)

    def _read(self, name: str) -> Iterator[Draft | Quarantined]:
        return each_draft(json_lines(self._root, name, self._config.limits), self._sample)

    def _sample(self, where: str, values: dict[str, Any]) -> Sample:
        texts, images = values.get("text_list"), values.get("image_info") or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise invalid("text_list", "expected a list of texts")
        if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
            raise invalid("image_info", "expected a list of objects")
        metadata = {"url": values["url"]} if isinstance(values.get("url"), str) else {}
        parts = self._parts(texts, _by_sentence(images, len(texts), self._config.min_similarity))
        return Document(self._config).sample(self._source, where, parts, metadata)

    def _parts(self, texts: list[str], images: dict[int, list[dict[str, Any]]]) -> Iterator[str | Picture]:
        before = self._config.image_position == "before"
        for index, text in enumerate(texts):
            pictures = [
                Picture(_name(image), lambda image=image: self._image(image)) for image in images.get(index, [])
            ]
            yield from [*pictures, text] if before else [text, *pictures]

    def _image(self, image: dict[str, Any]) -> bytes:
        """The image from the line itself, else from the folder, else from the web."""
        if image.get("image_base64"):
            return self._pictures.encoded(image["image_base64"], "image_base64")
        if not image.get("image_name"):
            return self._pictures.named(image.get("raw_url"), "raw_url")
        try:
            return self._pictures.named(image["image_name"], "image_name")
        except NotFoundError:
            if not image.get("raw_url"):
                raise
            return self._pictures.named(image["raw_url"], "raw_url")


def _by_sentence(
    images: list[dict[str, Any]], sentences: int, min_similarity: float
) -> dict[int, list[dict[str, Any]]]:
    """Images by the sentence they belong to, in the order in which they are listed."""
    found: dict[int, list[dict[str, Any]]] = {}
    for position, image in enumerate(images):
        index, similarity = image.get("matched_text_index"), image.get("matched_sim", 1.0)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < sentences:
            raise invalid(
                f"image_info[{position}].matched_text_index", f"{index!r} names none of {sentences} sentences"
            )
        if not isinstance(similarity, int | float):
            raise invalid(f"image_info[{position}].matched_sim", "expected a number")
        if similarity >= min_similarity:
            found.setdefault(index, []).append(image)
    return found


def _name(image: dict[str, Any]) -> str:
    return str(image.get("image_name") or image.get("raw_url") or "image")
