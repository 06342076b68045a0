"""Conversations about images in the format of LLaVA: ``{"id", "image", "conversations": [{"from", "value"}]}``.

The format is that of LLaVA's training data (Liu et al., arXiv 2304.08485): ``<image>`` marks where an image stands
in a turn; an entry whose turns hold no mark shows its images before the first turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rebus.data.readers.base import (
    Draft,
    DraftingReader,
    Location,
    Quarantined,
    ReaderLimits,
    SourceSettings,
    checked_image,
    clean_text,
    family_of,
)
from rebus.data.readers.files import json_lines, open_inside, parse_json, read_inside
from rebus.data.sample import Role, Sample, Segment
from rebus.errors import InvalidArgumentError, invalid
from rebus.registry import register

IMAGE_MARK = "<image>"
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True, kw_only=True)
class LlavaConfig(SourceSettings):
    """Where the conversations and their images are."""

    # A JSON array or a JSONL file inside the folder; a source whose URI names a file reads that one.
    conversations: str = "conversations.json"
    # Folder inside the source's folder that image paths are relative to.
    image_root: str = ""
    # What the turns are marked as.
    task: str = "conversation"


@register("reader", "llava", config=LlavaConfig)
class LlavaReader(DraftingReader):
    """Conversations about images in LLaVA's JSON or JSONL format."""

    def __init__(self, config: LlavaConfig, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._file = location.file or config.conversations
        self._source = config.source or location.label
        if not self._file.lower().endswith((".json", ".jsonl")):
            raise invalid("settings.conversations", f"{self._file}: expected a name ending in .json or .jsonl")
        with open_inside(self._root, self._file):  # a missing file shows before the job starts
            pass

    def drafts(self) -> Iterator[Draft | Quarantined]:
        limits = self._config.limits
        lines = self._file.lower().endswith(".jsonl")
        for entry in json_lines(self._root, self._file, limits) if lines else self._array():
            if isinstance(entry, Quarantined):
                yield entry
            else:
                where, values = entry
                yield Draft(where, lambda where=where, values=values: self._sample(where, values))

    def _array(self) -> Iterator[tuple[str, dict[str, Any]] | Quarantined]:
        try:
            entries = parse_json(read_inside(self._root, self._file, max_bytes=self._config.limits.max_file_bytes))
            if not isinstance(entries, list):
                raise invalid("JSON", f"expected an array, found {type(entries).__name__}")
        except InvalidArgumentError as error:
            yield Quarantined(self._file, str(error))
            return
        for index, entry in enumerate(entries):
            where = f"{self._file}[{index}]"
            if isinstance(entry, dict):
                yield where, entry
            else:
                yield Quarantined(where, f"expected an object, found {type(entry).__name__}")

    def _sample(self, where: str, entry: dict[str, Any]) -> Sample:
        config = self._config
        media = self._images(entry)
        segments = conversation_segments(entry.get("conversations"), len(media), config.task, config.limits)
        family = family_of([segment.text for segment in segments], media)
        return Sample(
            id=f"{self._source}/{where}",
            family=f"{self._source}/{family}",
            split=config.splits.split_of(family),
            segments=segments,
            media=media,
            source=self._source,
            license=config.license,
            metadata={"id": str(entry.get("id", ""))},
        )

    def _images(self, entry: dict[str, Any]) -> list[bytes]:
        limits = self._config.limits
        named = entry.get("image") or []  # absent, null and empty all mean a conversation without images
        paths = named if isinstance(named, list) else [named]
        if len(paths) > limits.max_media:
            raise invalid("image", f"{len(paths)} images, more than the limit of {limits.max_media}")
        return [self._image(clean_text(path, "image", limits)) for path in paths]

    def _image(self, path: str) -> bytes:
        limits = self._config.limits
        inside = f"{self._config.image_root}/{path}" if self._config.image_root and not path.startswith("/") else path
        data = read_inside(self._root, inside, max_bytes=limits.image.max_bytes)
        return checked_image(data, path, limits)


def conversation_segments(turns: Any, num_images: int, task: str, limits: ReaderLimits) -> list[Segment]:
    """Turns as segments, an image segment wherever a turn says ``<image>``; assistant turns carry the loss.

    ``InvalidArgumentError`` if the marks do not match the images or nobody answers.
    """
    if not isinstance(turns, list) or not turns:
        raise invalid("conversations", "expected a list of turns")
    segments: list[Segment] = []
    for index, turn in enumerate(turns):
        segments += _turn_segments(turn, f"conversations[{index}]", task, limits)
    if len(segments) > limits.max_segments:
        raise invalid("conversations", f"{len(segments)} segments, more than the limit of {limits.max_segments}")
    if not any(segment.loss for segment in segments):
        raise invalid("conversations", "no turn of the assistant")
    marked = sum(segment.type == "image" for segment in segments)
    if marked == 0:
        return [Segment(type="image", media=i, task=task) for i in range(num_images)] + segments
    if marked != num_images:
        raise invalid("conversations", f"{marked} {IMAGE_MARK} marks for {num_images} images")
    return _numbered(segments)


def _turn_segments(turn: Any, where: str, task: str, limits: ReaderLimits) -> list[Segment]:
    speaker = turn.get("from") if isinstance(turn, dict) else None
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise invalid(f"{where}.from", f"expected one of {', '.join(_ROLES)}, found {speaker!r}")
    role = _ROLES[speaker]
    text = clean_text(turn.get("value"), f"{where}.value", limits)
    pieces = [piece.strip() for piece in text.split(IMAGE_MARK)]
    if role == "assistant" and not any(pieces):
        raise invalid(f"{where}.value", "is empty")
    segments: list[Segment] = []
    for index, piece in enumerate(pieces):
        if index:
            segments.append(Segment(type="image", media=0, role=role, task=task))
        if piece:
            segments.append(Segment(text=piece, role=role, loss=role == "assistant", task=task))
    return segments


def _numbered(segments: list[Segment]) -> list[Segment]:
    """Image segments refer to the images in the order in which both stand."""
    numbered: list[Segment] = []
    images = 0
    for segment in segments:
        if segment.type == "image":
            segment = Segment(type="image", media=images, role=segment.role, task=segment.task)
            images += 1
        numbered.append(segment)
    return numbered
