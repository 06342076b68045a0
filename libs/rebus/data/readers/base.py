"""What a reader is, and what readers share: limits, quarantine, checks of texts and images."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rebus.config import canonical_json
from rebus.data.audio import AudioLimits
from rebus.data.images import ImageLimits, decode_image
from rebus.data.sample import Sample
from rebus.data.splits import SplitShares
from rebus.data.video import VideoLimits
from rebus.errors import InvalidArgumentError, NotFoundError, invalid


@dataclass(frozen=True)
class Quarantined:
    """A bad sample that was left out: the file (and line or entry) it came from, and what is wrong with it."""

    location: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ReaderLimits:
    """Bounds that keep hostile or broken input from exhausting memory."""

    image: ImageLimits = field(default_factory=ImageLimits)
    audio: AudioLimits = field(default_factory=AudioLimits)
    video: VideoLimits = field(default_factory=VideoLimits)
    max_text_chars: int = 100_000
    # One line of a CSV, TSV or JSONL file.
    max_line_bytes: int = 4 << 20
    # A file that is read whole: a JSON array, a text file.
    max_file_bytes: int = 1 << 30
    max_segments: int = 4096
    max_media: int = 256
    # Samples of one source, bad ones counted; more is an error of the whole source.
    max_samples: int = 100_000_000


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Settings of every reader of files; a reader with other settings makes its samples and takes no path."""

    # Recorded with each sample and part of its id; defaults to the name of the folder or file read.
    source: str = ""
    # SPDX expression where one exists.
    license: str = ""
    splits: SplitShares = field(default_factory=SplitShares)
    limits: ReaderLimits = field(default_factory=ReaderLimits)


@dataclass(frozen=True)
class Location:
    """What a source's URI names: a folder, and a file in it if the URI names a file."""

    root: Path
    file: str = ""

    @property
    def label(self) -> str:
        """The default name of the source."""
        return Path(self.file).stem if self.file else self.root.name


@dataclass(frozen=True)
class Draft:
    """A sample that is still to be made: its files read, its images decoded to see that they are whole."""

    location: str
    make: Callable[[], Sample]

    def finish(self) -> Sample | Quarantined:
        """The sample, or the reason why it is bad."""
        return attempt(self.location, self.make)


class Reader(Protocol):
    """Built as ``reader(config, location)``; building checks all that can be checked without reading samples.

    ``location`` is None for readers that make their samples. Iterating yields every sample in a fixed order, and
    a ``Quarantined`` in place of each bad one; it raises only for what spoils the whole source.

    A reader whose samples take time to make may have a method ``drafts()`` too, which yields the same items in the same
    order, with a ``Draft`` in place of a sample: an ingestion finishes drafts in threads, and skips them at no cost.
    ``DraftingReader`` makes ``__iter__`` out of it.
    """

    def __iter__(self) -> Iterator[Sample | Quarantined]: ...


class DraftingReader(ABC):
    """A reader that makes drafts."""

    @abstractmethod
    def drafts(self) -> Iterator[Draft | Quarantined]:
        """What ``__iter__`` yields, unfinished; a draft must hold all it needs, and its threads share the reader."""

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        for item in self.drafts():
            yield item.finish() if isinstance(item, Draft) else item


def attempt(location: str, make: Callable[[], Sample]) -> Sample | Quarantined:
    """The sample that ``make`` builds, or the reason why it is bad."""
    try:
        sample = make()
        sample.validate()
        canonical_json(sample.metadata)
    except (InvalidArgumentError, NotFoundError) as error:
        return Quarantined(location, str(error))
    except ValueError as error:  # of the metadata: a lone surrogate, or nothing that JSON knows
        return Quarantined(location, f"metadata: {error}")
    return sample


def clean_text(value: Any, name: str, limits: ReaderLimits) -> str:
    """``value`` without surrounding white space; ``InvalidArgumentError`` if it is no text, empty or too long."""
    if value is None:
        raise invalid(name, "is missing")
    if not isinstance(value, str):
        raise invalid(name, f"expected text, found {type(value).__name__}")
    text = value.strip()
    if not text:
        raise invalid(name, "is empty")
    if len(text) > limits.max_text_chars:
        raise invalid(name, f"{len(text)} characters, more than the limit of {limits.max_text_chars}")
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: bytes that were no UTF-8, or a broken JSON escape
        raise invalid(name, "is not valid Unicode") from None
    return text


def checked_image(data: bytes, name: str, limits: ReaderLimits) -> bytes:
    """``data`` once it has decoded whole; ``InvalidArgumentError`` otherwise."""
    decode_image(data, limits=limits.image, field=name)
    return data


def content_key(*parts: bytes) -> str:
    """A short name for content: equal bytes get equal names."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()[:16]


def family_of(texts: Sequence[str], media: Sequence[bytes]) -> str:
    """The family of a sample that names none: its first image, so that all captions of it stay together."""
    return content_key(media[0]) if media else content_key(*(text.encode() for text in texts))
