"""What a reader is, and what readers share: limits, quarantine, checks of texts and images."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rebus.config import canonical_json
from rebus.data.audio import AudioLimits
from rebus.data.images import ImageLimits, decode_image
from rebus.data.sample import Sample, Segment
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
    """Bounds that keep hostile or broken input from exhausting memory or disk."""

    image: ImageLimits = field(default_factory=ImageLimits)
    audio: AudioLimits = field(default_factory=AudioLimits)
    video: VideoLimits = field(default_factory=VideoLimits)
    max_text_chars: int = 100_000
    # One line of a CSV, TSV or JSONL file; one element of a JSON array; one text or JSON member of an archive.
    max_line_bytes: int = 4 << 20
    # One file of a source. What comes over the network, or out of gzip, lies on disk while it is read.
    max_file_bytes: int = 64 << 30
    # A file that is read whole: an HTML document, a table of names.
    max_document_bytes: int = 16 << 20
    # Tags of an HTML document that stand inside each other.
    max_depth: int = 512
    # One column of a Parquet row group, one Arrow record batch: both uncompressed.
    max_chunk_bytes: int = 1 << 30
    # Members of one archive, those that are skipped counted too.
    max_members: int = 1_000_000
    max_segments: int = 4096
    max_media: int = 256
    # All media of one sample.
    max_sample_bytes: int = 512 << 20
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


class RemoteFolder(Protocol):
    """Files that are not on this machine. Relative paths as in ``readers.files``, which readers go through."""

    @property
    def name(self) -> str:
        """The folder's own name."""
        ...

    def check(self, relative: str) -> None:
        """Raises what can be found out about a file without reading it."""
        ...

    def open(self, relative: str, *, max_bytes: int) -> AbstractContextManager[BinaryIO]:
        """A seekable copy of the file on local disk, which is gone when the block ends."""
        ...

    def read(self, relative: str, *, max_bytes: int) -> bytes:
        """The bytes of a small file."""
        ...

    def files(self, suffixes: tuple[str, ...]) -> Iterator[str | Quarantined]:
        """Relative paths of the files with one of the suffixes, sorted."""
        ...


# Where a source's files are: a folder of this machine, or one elsewhere.
Root = Path | RemoteFolder


@dataclass(frozen=True)
class Location:
    """What a source's URI names: a folder, and a file in it if the URI names a file."""

    root: Root
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
    order, with a ``Draft`` in place of such a sample: an ingestion finishes drafts in threads, and skips them at no
    cost. ``DraftingReader`` makes ``__iter__`` out of it.
    """

    def __iter__(self) -> Iterator[Sample | Quarantined]: ...


class DraftingReader(ABC):
    """A reader that makes drafts."""

    @abstractmethod
    def drafts(self) -> Iterator[Draft | Sample | Quarantined]:
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


def each_draft(
    rows: Iterable[tuple[str, dict[str, Any]] | Quarantined], make: Callable[[str, dict[str, Any]], Sample]
) -> Iterator[Draft | Quarantined]:
    """A draft of the sample that ``make(location, row)`` builds of each row; ``make`` runs in several threads."""
    for row in rows:
        if isinstance(row, Quarantined):
            yield row
        else:
            where, values = row
            yield Draft(where, lambda where=where, values=values: make(where, values))


def each_row(
    rows: Iterable[tuple[str, dict[str, Any]] | Quarantined], make: Callable[[str, dict[str, Any]], Sample]
) -> Iterator[Sample | Quarantined]:
    """The sample that ``make(location, row)`` builds of each row, or the reason why it is bad; row after row."""
    for item in each_draft(rows, make):
        yield item.finish() if isinstance(item, Draft) else item


def made_sample(
    settings: SourceSettings,
    source: str,
    key: str,
    segments: Sequence[Segment],
    media: Sequence[bytes] = (),
    *,
    metadata: Mapping[str, Any] | None = None,
    family: str = "",
    split: str = "",
) -> Sample:
    """A sample of a source; one that names no family is of that of its first image, or of its text.

    ``InvalidArgumentError`` for more segments or media than the limits allow.
    """
    limits = settings.limits
    if len(segments) > limits.max_segments:
        raise invalid("segments", f"{len(segments)}, more than the limit of {limits.max_segments}")
    check_media(media, limits)
    family = family or family_of([segment.text for segment in segments], media)
    return Sample(
        id=f"{source}/{key}",
        family=f"{source}/{family}",
        split=split or settings.splits.split_of(family),
        segments=segments,
        media=media,
        source=source,
        license=settings.license,
        metadata=metadata or {},
    )


def check_media(media: Sequence[bytes], limits: ReaderLimits) -> None:
    """``InvalidArgumentError`` for more media, or more bytes of them, than one sample may hold."""
    if len(media) > limits.max_media:
        raise invalid("media", f"{len(media)} images, more than the limit of {limits.max_media}")
    total = sum(map(len, media))
    if total > limits.max_sample_bytes:
        raise invalid("media", f"{total} bytes, more than the limit of {limits.max_sample_bytes} a sample")


def clean_text(value: Any, name: str, limits: ReaderLimits) -> str:
    """``value`` without surrounding white space; ``InvalidArgumentError`` if it is no text, empty or too long."""
    text = bounded_text(value, name, limits)
    if "\0" in text:  # zeros where a file was never written to its end, or UTF-16
        raise invalid(name, "holds NUL characters")
    return text


def bounded_text(value: Any, name: str, limits: ReaderLimits) -> str:
    """As ``clean_text``, for texts that were samples before: they may hold any character."""
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
