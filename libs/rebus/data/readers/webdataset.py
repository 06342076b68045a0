"""WebDataset shards: tar archives in which files that differ only in their endings make up one sample.

``cats/0001.jpg`` and ``cats/0001.txt``, one after the other, are the picture and the caption of ``cats/0001``. Endings
that nothing here reads (``.npy``, ``.pyd``, ``.pickle``, ...) are passed over: nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rebus.data.readers.archives import SUFFIXES, Member, members
from rebus.data.readers.base import (
    Draft,
    DraftingReader,
    Location,
    Quarantined,
    ReaderLimits,
    SourceSettings,
    checked_image,
    clean_text,
    made_sample,
)
from rebus.data.readers.exact import exact_sample
from rebus.data.readers.files import check_inside, each_file, list_files, parse_json
from rebus.data.sample import Sample, Segment
from rebus.errors import invalid
from rebus.registry import register

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
# The exporter's: a sample's record, which names its media members; and media that are no images.
RECORD_ENDING = "sample.json"
OTHER_ENDING = "bin"


@dataclass(frozen=True, kw_only=True)
class WebDatasetConfig(SourceSettings):
    """What a sample's members mean. Members that the exporter wrote need no settings: samples come as they were."""

    # Shards inside the folder; empty: every .tar, .tar.gz and .tgz below it. A URI that names a file reads that one.
    files: list[str] = field(default_factory=list)
    # Which members are images, in the order of the shard.
    image_endings: list[str] = field(default_factory=lambda: list(IMAGE_ENDINGS))
    # The member that holds what is told: a caption (``txt``), a class (``cls``), or a field of a JSON member.
    caption_ending: str = "txt"
    caption_field: str = ""
    # The JSON member that is kept as the sample's metadata, if there is one.
    metadata_ending: str = "json"
    # What the user says before the caption; nothing if empty.
    prompt: str = ""
    # What the segments are marked as.
    task: str = "caption"


@register("reader", "webdataset", config=WebDatasetConfig)
class WebDatasetReader(DraftingReader):
    """WebDataset tar shards: images with captions, classes or JSON, and what the webdataset exporter wrote."""

    def __init__(self, config: WebDatasetConfig, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._files = [location.file] if location.file else config.files
        self._source = config.source or location.label
        for name in self._files:
            if not name.lower().endswith(SUFFIXES):
                raise invalid("settings.files", f"{name}: expected a name ending in {', '.join(SUFFIXES)}")
            check_inside(self._root, name)

    def drafts(self) -> Iterator[Draft | Quarantined]:
        yield from each_file(self._files or list_files(self._root, SUFFIXES), self._read)

    def _read(self, shard: str) -> Iterator[Draft | Quarantined]:
        for group in _groups(self._members(shard), shard, self._config.limits):
            if isinstance(group, Quarantined):
                yield group
            elif group.problem:
                yield Quarantined(f"{shard}/{group.key}", group.problem)
            else:
                yield Draft(f"{shard}/{group.key}", lambda group=group: self._sample(shard, group))

    def _members(self, shard: str) -> Iterator[Member | Quarantined]:
        return members(self._root, shard, self._wanted, self._config.limits)

    def _wanted(self, name: str) -> int:
        ending, limits = _split_name(name)[1], self._config.limits
        last = ending.rpartition(".")[2]
        if last in self._config.image_endings:
            return limits.image.max_bytes
        if last == OTHER_ENDING:
            return limits.max_sample_bytes
        texts = (RECORD_ENDING, self._config.caption_ending, self._config.metadata_ending)
        return limits.max_line_bytes if ending in texts else 0

    def _sample(self, shard: str, group: _Group) -> Sample:
        if RECORD_ENDING in group.members:
            return self._exact(group)
        config = self._config
        images = [(e, data) for e, data in group.members.items() if e.rpartition(".")[2] in config.image_endings]
        media = [checked_image(data, ending, config.limits) for ending, data in images]
        metadata = self._metadata(group)
        asked = [Segment(text=config.prompt, branch=1, task=config.task)] if config.prompt else []
        told = Segment(text=self._caption(group, metadata), role="assistant", loss=True, branch=1, task=config.task)
        shown = [Segment(type="image", media=index) for index in range(len(media))]
        key = f"{shard}/{group.key}"
        return made_sample(config, self._source, key, [*shown, *asked, told], media, metadata=metadata)

    def _exact(self, group: _Group) -> Sample:
        record = parse_json(group.members[RECORD_ENDING])
        names = record.get("media") if isinstance(record, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise invalid(RECORD_ENDING, "expected an object that lists its media")
        missing = [name for name in names if name not in group.members]
        if missing:
            raise invalid(RECORD_ENDING, f"the shard holds no member {missing[0][:80]!r} of it")
        return exact_sample(record, [group.members[name] for name in names], self._config.limits)

    def _metadata(self, group: _Group) -> dict[str, Any]:
        ending = self._config.metadata_ending
        if ending not in group.members:
            return {}
        metadata = parse_json(group.members[ending])
        if not isinstance(metadata, dict):
            raise invalid(ending, f"expected a JSON object, found {type(metadata).__name__}")
        return metadata

    def _caption(self, group: _Group, metadata: dict[str, Any]) -> str:
        config = self._config
        if config.caption_field:
            return clean_text(metadata.get(config.caption_field), config.caption_field, config.limits)
        data = group.members.get(config.caption_ending)
        text = None if data is None else data.decode("utf-8-sig", errors="surrogateescape")
        return clean_text(text, config.caption_ending, config.limits)


@dataclass
class _Group:
    """The members of one sample by ending, in the order of the shard."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    # Why the sample cannot be whole; empty if it may be.
    problem: str = ""
    held_bytes: int = 0

    def add(self, ending: str, item: Member | Quarantined, limits: ReaderLimits) -> None:
        """One more member; a bad one spoils the sample."""
        if isinstance(item, Quarantined):
            self.spoil(f"{ending}: {item.reason}")
        elif ending in self.members:
            self.spoil(f"{ending}: there are two of it")
        elif len(self.members) > limits.max_media or self.held_bytes + len(item.data) > limits.max_sample_bytes:
            self.spoil(f"more than {limits.max_media} members or {limits.max_sample_bytes} bytes")
        if self.problem or isinstance(item, Quarantined):
            return
        self.members[ending] = item.data
        self.held_bytes += len(item.data)

    def spoil(self, problem: str) -> None:
        """Names what is wrong; the first problem counts. What was held is let go."""
        self.problem = self.problem or problem
        self.members.clear()


def _groups(items: Iterator[Member | Quarantined], shard: str, limits: ReaderLimits) -> Iterator[_Group | Quarantined]:
    """Neighbours of one key. Where the archive breaks, the sample before the break may lack a member: it goes too."""
    group = _Group("")
    for item in items:
        broken = isinstance(item, Quarantined) and item.location == shard
        name = item.name if isinstance(item, Member) else item.location.removeprefix(f"{shard}/")
        key, ending = _split_name(name)
        if broken:
            group.spoil("the archive breaks before the sample is known to be whole")
        if group.key and (broken or key != group.key):
            yield group
        if isinstance(item, Quarantined) and broken:
            yield item
            return
        if key != group.key:
            group = _Group(key)
        group.add(ending, item, limits)
    if group.key:
        yield group


def _split_name(name: str) -> tuple[str, str]:
    """``a/b`` and ``seg.png`` of ``a/b.seg.png``: a key ends at the first dot of the file's own name."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    base, _, ending = file.partition(".")
    return f"{folder}{slash}{base}", ending.lower()
