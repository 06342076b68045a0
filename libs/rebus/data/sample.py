"""The one shape of data: a sample is an ordered list of segments and the media bytes they refer to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

from rebus.errors import InvalidArgumentError, invalid

SegmentType = Literal["text", "image", "audio", "video"]
Role = Literal["system", "user", "assistant"]
Box = tuple[float, float, float, float]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One piece of a sample.

    ``branch`` 0 is context shared by the whole sample; segments of branch ``k > 0`` attend to branch 0 and to
    their own branch only, so many independent questions about one image cost one encoding of that image.
    ``task`` names what is asked or answered (``existence``, ``count``, ``caption``, ...).
    ``regions`` are boxes ``(x1, y1, x2, y2)``, as fractions of the sides, of what the segment speaks of in image
    ``media`` (without one: the sample's first): ``None`` where that is not known, empty where it speaks of nothing that
    is there.
    ``start_seconds`` and ``end_seconds`` bound, in time, the part of audio or video ``media`` that the segment is, or
    for a text the part that it speaks of; ``None`` is the media's own start or end.
    """

    type: SegmentType = "text"
    role: Role = "user"
    text: str = ""
    media: int = -1
    loss: bool = False
    branch: int = 0
    task: str = ""
    regions: tuple[Box, ...] | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of a dataset.

    Samples of one ``family`` (an emoji and its skin-tone variants, all questions about one scene) never straddle
    splits. ``metadata`` is JSON-serialisable and belongs to the source (a scene graph, a language code, ...).
    """

    id: str
    family: str = ""
    split: str = "train"
    segments: Sequence[Segment] = ()
    media: Sequence[bytes] = ()
    source: str = ""
    license: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_image(self) -> bytes | None:
        """Media of the first image segment; ``None`` where the sample shows no still image."""
        return next((self.media[segment.media] for segment in self.segments if segment.type == "image"), None)

    @property
    def num_bytes(self) -> int:
        """About what the sample holds in memory: its media and, a byte a character, its texts."""
        return sum(map(len, self.media)) + sum(len(segment.text) for segment in self.segments)

    def validate(self) -> None:
        """Raises ``InvalidArgumentError`` naming the first field that breaks the shape above."""
        if not self.id:
            raise invalid("sample.id", "must not be empty")
        if self.split not in SPLITS:
            raise invalid(f"sample[{self.id}].split", f"expected one of {', '.join(SPLITS)}, found {self.split!r}")
        if not self.segments:
            raise invalid(f"sample[{self.id}].segments", "must hold at least one segment")
        for position, segment in enumerate(self.segments):
            self._validate_segment(position, segment)

    def _validate_segment(self, position: int, segment: Segment) -> None:
        where = f"sample[{self.id}].segments[{position}]"
        if segment.type == "text" and not segment.text.strip():
            raise _bad(where, "text", "must not be empty")
        if segment.type != "text" and not 0 <= segment.media < len(self.media):
            raise _bad(where, "media", f"index {segment.media} is outside the sample's {len(self.media)} media")
        if segment.branch < 0:
            raise _bad(where, "branch", "must not be negative")
        _validate_times(where, segment)


def _validate_times(where: str, segment: Segment) -> None:
    start, end = segment.start_seconds, segment.end_seconds
    if segment.type == "image" and (start is not None or end is not None):
        raise _bad(where, "start_seconds" if start is not None else "end_seconds", "an image has no time")
    if start is not None and not (isfinite(start) and start >= 0):
        raise _bad(where, "start_seconds", f"expected a time of at least 0, found {start}")
    if end is not None and not (isfinite(end) and end > (start or 0.0)):
        raise _bad(where, "end_seconds", f"expected a time after {start or 0.0:g} s, found {end}")


def _bad(where: str, name: str, description: str) -> InvalidArgumentError:
    return invalid(f"{where}.{name}", description)
