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
    SourceSettings,
    each_draft,
    made_sample,
)
from rebus.data.readers.conversations import conversation_segments
from rebus.data.readers.files import check_inside, json_array, json_lines
from rebus.data.readers.pictures import Pictures
from rebus.data.sample import Sample
from rebus.errors import invalid
from rebus.registry import register


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
        self._pictures = Pictures(self._root, config.limits, folder=config.image_root)
        check_inside(self._root, self._file)

    def drafts(self) -> Iterator[Draft | Quarantined]:
        entries = json_lines if self._file.lower().endswith(".jsonl") else json_array
        yield from each_draft(entries(self._root, self._file, self._config.limits), self._sample)

    def _sample(self, where: str, entry: dict[str, Any]) -> Sample:
        media = self._images(entry)
        segments = conversation_segments(entry.get("conversations"), len(media), self._config.task, self._config.limits)
        metadata = {"id": str(entry.get("id", ""))}
        return made_sample(self._config, self._source, where, segments, media, metadata=metadata)

    def _images(self, entry: dict[str, Any]) -> list[bytes]:
        limits = self._config.limits
        named = entry.get("image") or []  # absent, null and empty all mean a conversation without images
        paths = named if isinstance(named, list) else [named]
        if len(paths) > limits.max_media:
            raise invalid("image", f"{len(paths)} images, more than the limit of {limits.max_media}")
        return [self._pictures.named(path) for path in paths]
