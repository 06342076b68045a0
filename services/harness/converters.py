"""Samples and prompts between the wire and the library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from google.protobuf import json_format, struct_pb2

from rebus import cancellation
from rebus.config import to_plain
from rebus.data.images import ImageLimits
from rebus.data.sample import Role, Sample, Segment, SegmentType
from rebus.errors import NotFoundError, invalid
from rebus.store import Store
from rebus.store import media as media_objects
from rebus.v1 import common_pb2 as pb
from rebus.v1.retrieval_pb2 import Query

MAX_IMAGE_BYTES = ImageLimits().max_bytes
# What the uploaded images of one request may hold together.
MAX_REFERRED_BYTES = 64 << 20
# What the samples of one answer may hold: a message of 64 MiB, and what is left for the texts of the last of them.
MAX_ANSWER_BYTES = 48 << 20

_ROLES: dict[int, Role] = {
    pb.Segment.ROLE_UNSPECIFIED: "user",
    pb.Segment.SYSTEM: "system",
    pb.Segment.USER: "user",
    pb.Segment.ASSISTANT: "assistant",
}
# A content's field -> the segment's type; but for references they are named alike.
_TYPES: dict[str, SegmentType] = {
    "text": "text",
    "image": "image",
    "image_ref": "image",
    "audio": "audio",
    "video": "video",
}
_ROLE_VALUES = {"system": pb.Segment.SYSTEM, "user": pb.Segment.USER, "assistant": pb.Segment.ASSISTANT}


def sample_to_proto(sample: Sample, room: int = MAX_ANSWER_BYTES) -> pb.Sample:
    """A sample with its media inline, but for those that do not fit into ``room`` (bytes) behind earlier ones."""
    segments: list[pb.Segment] = []
    for segment in sample.segments:
        size = 0 if segment.type == "text" else len(sample.media[segment.media])
        segments.append(_segment_to_proto(segment, sample, omit=size > room))
        room -= size if size <= room else 0
    metadata = struct_pb2.Struct()
    json_format.ParseDict(to_plain(sample.metadata), metadata)
    return pb.Sample(
        id=sample.id,
        family=sample.family,
        split=sample.split,
        segments=segments,
        source=sample.source,
        license=sample.license,
        metadata=metadata,
    )


def _segment_to_proto(segment: Segment, sample: Sample, *, omit: bool) -> pb.Segment:
    message = pb.Segment(
        role=_ROLE_VALUES[segment.role],
        loss=segment.loss,
        branch=segment.branch,
        task=segment.task,
        start_seconds=segment.start_seconds,
        end_seconds=segment.end_seconds,
    )
    if omit:
        media = sample.media[segment.media]
        digest = hashlib.sha256(media).hexdigest()
        message.omitted.CopyFrom(pb.OmittedMedia(kind=segment.type, size_bytes=len(media), sha256=digest))
    else:
        setattr(message, segment.type, segment.text if segment.type == "text" else sample.media[segment.media])
    for x1, y1, x2, y2 in segment.regions or ():
        message.regions.add(x1=x1, y1=y1, x2=x2, y2=y2)
    return message


def prompt_from_proto(segments: Sequence[pb.Segment], store: Store) -> Sample:
    """A prompt as a sample: its segments in order, their media collected, uploaded images read from the store."""
    for at, message in enumerate(segments):
        if message.HasField("omitted"):
            raise invalid(f"segments[{at}].omitted", "stands for media that an answer left out; send or upload them")
    images = read_images(segments, store, [f"segments[{at}]" for at in range(len(segments))])
    media: list[bytes] = []
    converted: list[Segment] = []
    for message, image in zip(segments, images, strict=True):
        segment = _segment_from_proto(message, next_media=len(media))
        if segment.type != "text":
            media.append(getattr(message, segment.type) if image is None else image)
        converted.append(segment)
    return Sample(id="prompt", segments=converted, media=media)


def _segment_from_proto(message: pb.Segment, next_media: int) -> Segment:
    kind = _TYPES[message.WhichOneof("content") or "text"]
    return Segment(
        type=kind,
        role=_ROLES[message.role],
        text=message.text,
        media=-1 if kind == "text" else next_media,
        branch=message.branch,
        start_seconds=message.start_seconds if message.HasField("start_seconds") else None,
        end_seconds=message.end_seconds if message.HasField("end_seconds") else None,
    )


def read_images(
    contents: Sequence[pb.Segment] | Sequence[Query], store: Store, fields: Sequence[str]
) -> list[bytes | None]:
    """The encoded image of each segment or query, ``None`` for one of text; uploaded ones are read from the store.

    ``fields`` name the messages in errors: ``NotFoundError`` for what was not uploaded, ``InvalidArgumentError`` if one
    is larger than an image may be, or all together are more than a request may refer to.
    """
    total = 0
    for content, field in zip(contents, fields, strict=True):
        if content.WhichOneof("content") == "image_ref":
            total += _checked_size(content.image_ref, store, f"{field}.image_ref")
            if total > MAX_REFERRED_BYTES:
                raise invalid(f"{field}.image_ref", f"the request refers to more than {MAX_REFERRED_BYTES} bytes")
    return [_image_of(content, store) for content in contents]


def _checked_size(name: str, store: Store, field: str) -> int:
    try:
        size = media_objects.size_of(store, name)
    except NotFoundError as error:
        raise NotFoundError(f"{field}: {error}", metadata=error.metadata) from None
    if size > MAX_IMAGE_BYTES:
        raise invalid(field, f"{name} has {size} bytes; an image has at most {MAX_IMAGE_BYTES}")
    return size


def _image_of(content: pb.Segment | Query, store: Store) -> bytes | None:
    kind = content.WhichOneof("content")
    if kind == "image":
        return content.image
    if kind != "image_ref":
        return None
    cancellation.current().check()
    return media_objects.read(store, content.image_ref)
