"""Samples as conversations in the format of LLaVA: ``conversations.json`` and a folder of images.

The format holds who says what, and where the images stand. It has no place for the other fields of a sample. Those
that belong to the sample as a whole (family, split, source, licence, metadata) are left out; its id goes along as the
entry's ``id``. Those that belong to a segment (loss, branch, task, regions) would change what a model learns, so a
sample that uses one is refused unless ``drop`` names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rebus.data.exporters.base import media_ending
from rebus.data.readers.conversations import IMAGE_MARK
from rebus.data.readers.webdataset import OTHER_ENDING
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError, invalid
from rebus.registry import register

_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}
_IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class LlavaExportConfig:
    """What may be lost."""

    # Fields of segments that are left out; a sample that uses another one is an error. ``loss`` is used where it is
    # on for what others than the assistant say, or off for what the assistant says.
    drop: list[Literal["loss", "branch", "task", "regions"]] = field(default_factory=list)
    # What the segments are marked as that need no dropping: the reader marks them so again by its setting ``task``.
    task: str = "conversation"


@register("exporter", "llava", config=LlavaExportConfig)
class LlavaExporter:
    """LLaVA's JSON with a folder of images: conversations alone; refuses what it would lose unless told to drop it."""

    def __init__(self, config: LlavaExportConfig) -> None:
        self._config = config

    def write(self, samples: Iterable[Sample], folder: Path) -> int:
        """Writes ``conversations.json`` and ``images/``, where equal images are one file."""
        (folder / _IMAGES).mkdir()
        count = 0
        with (folder / "conversations.json").open("w", encoding="utf-8") as file:
            file.write("[")
            for sample in samples:
                file.write(",\n" if count else "\n")
                json.dump(self._entry(sample, folder), file, ensure_ascii=False)
                count += 1
            file.write("\n]\n")
        return count

    def _entry(self, sample: Sample, folder: Path) -> dict[str, Any]:
        problem = self._problem(sample)
        if problem:
            raise invalid(f"sample[{sample.id}]", f"LLaVA's format cannot hold {problem}")
        turns = [{"from": _SPEAKERS[role], "value": text} for role, text in _turns(sample.segments)]
        names = [_image(data, folder) for data in sample.media]
        images = {"image": names[0] if len(names) == 1 else names} if names else {}
        return {"id": sample.id, **images, "conversations": turns}

    def _problem(self, sample: Sample) -> str:
        """What would be lost or read back as something else; empty if nothing."""
        segments = sample.segments
        used = next((name for s in segments for name in self._used(s) if name not in self._config.drop), "")
        if used:
            return f"{used!r}, which a segment uses; list it in `drop` to leave it out"
        if any(segment.type not in ("text", "image") for segment in segments):
            return "media other than images"
        if [s.media for s in segments if s.type == "image"] != list(range(len(sample.media))):
            return "images that are shown in another order than they are stored, twice, or never"
        if any(s.type == "text" and (s.text != s.text.strip() or IMAGE_MARK in s.text) for s in segments):
            return f"a text that begins or ends with white space, or says {IMAGE_MARK}"
        if not any(segment.role == "assistant" and segment.type == "text" for segment in segments):
            return "a sample in which the assistant says nothing"
        if any(role == "assistant" and text.replace(IMAGE_MARK, "").strip() == "" for role, text in _turns(segments)):
            return "an image that the assistant shows without a word"
        return ""

    def _used(self, segment: Segment) -> Iterator[str]:
        if segment.type == "text" and segment.loss != (segment.role == "assistant"):
            yield "loss"
        if segment.branch:
            yield "branch"
        if segment.task != self._config.task:
            yield "task"
        if segment.regions is not None:
            yield "regions"


def _turns(segments: Iterable[Segment]) -> list[tuple[str, str]]:
    """Neighbours of one role as one turn, unless two texts meet: nothing would tell where the one ends."""
    turns: list[tuple[str, str]] = []
    before: Segment | None = None
    for segment in segments:
        said = segment.text if segment.type == "text" else IMAGE_MARK
        joins = before is not None and before.role == segment.role and "image" in (before.type, segment.type)
        if joins:
            turns[-1] = (segment.role, f"{turns[-1][1]}\n{said}")
        else:
            turns.append((segment.role, said))
        before = segment
    return turns


def _image(data: bytes, folder: Path) -> str:
    """Writes an image once and returns its path inside the folder."""
    ending = media_ending(data)
    if ending == OTHER_ENDING:
        raise InvalidArgumentError("LLaVA's format cannot hold media other than PNG, JPEG and WebP images")
    name = f"{_IMAGES}/{hashlib.sha256(data).hexdigest()[:32]}.{ending}"
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return name
