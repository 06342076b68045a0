"""Documents of texts and images in turn: what the readers of MMC4, OBELICS and HTML share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rebus.data.readers.base import ReaderLimits, SourceSettings, clean_text, made_sample
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError, NotFoundError, invalid


@dataclass(frozen=True, kw_only=True)
class InterleavedSettings(SourceSettings):
    """Settings of every reader of interleaved documents."""

    # A document with a bad or missing image is left out (``quarantine``), or goes on without that image (``drop``),
    # whose name and reason its metadata then keeps.
    bad_images: Literal["quarantine", "drop"] = "quarantine"
    # What the texts are marked as.
    task: str = "interleaved"


@dataclass(frozen=True)
class Picture:
    """An image of a document: its name, and what reads it."""

    name: str
    load: Callable[[], bytes]


class Document:
    """Collects a document's parts in order."""

    def __init__(self, settings: InterleavedSettings) -> None:
        self._settings = settings
        self._segments: list[Segment] = []
        self._media: list[bytes] = []
        self._held_bytes = 0
        self._dropped: list[dict[str, str]] = []

    def sample(self, source: str, key: str, parts: Iterable[str | Picture], metadata: dict[str, Any]) -> Sample:
        """The sample of all parts; ``InvalidArgumentError`` or ``NotFoundError`` says what is wrong with one."""
        for part in parts:
            if isinstance(part, Picture):
                self._add_image(part)
            elif part.strip():
                self._add_text(part)
            check_segments(len(self._segments), self._settings.limits)
        if not any(segment.type == "text" for segment in self._segments):
            raise invalid("document", "holds no text")
        kept = {**metadata, "dropped_images": self._dropped} if self._dropped else metadata
        return made_sample(self._settings, source, key, self._segments, self._media, metadata=kept)

    def _add_text(self, text: str) -> None:
        text = clean_text(text, "text", self._settings.limits)
        self._segments.append(Segment(text=text, role="assistant", loss=True, task=self._settings.task))

    def _add_image(self, picture: Picture) -> None:
        limits = self._settings.limits
        try:
            data = picture.load()
        except (InvalidArgumentError, NotFoundError) as error:
            if self._settings.bad_images == "quarantine":
                raise
            self._dropped.append({"name": picture.name[:200], "reason": str(error)[:500]})
            return
        self._held_bytes += len(data)
        if len(self._media) >= limits.max_media or self._held_bytes > limits.max_sample_bytes:
            raise invalid("document", f"more than {limits.max_media} images or {limits.max_sample_bytes} bytes of them")
        self._segments.append(Segment(type="image", media=len(self._media), task=self._settings.task))
        self._media.append(data)


def check_segments(count: int, limits: ReaderLimits) -> None:
    """``InvalidArgumentError`` for more segments than one sample may have."""
    if count > limits.max_segments:
        raise invalid("segments", f"more than the limit of {limits.max_segments}")
