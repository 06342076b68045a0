"""Samples and prompts between the wire and the library."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import json_format, struct_pb2

from rebus.config import to_plain
from rebus.data.sample import Role, Sample, Segment
from rebus.v1 import common_pb2 as pb

_ROLES: dict[int, Role] = {
    pb.Segment.ROLE_UNSPECIFIED: "user",
    pb.Segment.SYSTEM: "system",
    pb.Segment.USER: "user",
    pb.Segment.ASSISTANT: "assistant",
}
_ROLE_VALUES = {"system": pb.Segment.SYSTEM, "user": pb.Segment.USER, "assistant": pb.Segment.ASSISTANT}


def sample_to_proto(sample: Sample) -> pb.Sample:
    """A sample with its media inline."""
    metadata = struct_pb2.Struct()
    json_format.ParseDict(to_plain(sample.metadata), metadata)
    return pb.Sample(
        id=sample.id,
        family=sample.family,
        split=sample.split,
        segments=[_segment_to_proto(segment, sample) for segment in sample.segments],
        source=sample.source,
        license=sample.license,
        metadata=metadata,
    )


def _segment_to_proto(segment: Segment, sample: Sample) -> pb.Segment:
    message = pb.Segment(role=_ROLE_VALUES[segment.role], loss=segment.loss, branch=segment.branch, task=segment.task)
    if segment.type == "image":
        message.image = sample.media[segment.media]
    else:
        message.text = segment.text
    for x1, y1, x2, y2 in segment.regions or ():
        message.regions.add(x1=x1, y1=y1, x2=x2, y2=y2)
    return message


def prompt_from_proto(segments: Iterable[pb.Segment]) -> Sample:
    """A prompt as a sample: its segments in order, images collected as media."""
    media: list[bytes] = []
    converted: list[Segment] = []
    for segment in segments:
        role = _ROLES[segment.role]
        if segment.WhichOneof("content") == "image":
            media.append(segment.image)
            converted.append(Segment(type="image", role=role, media=len(media) - 1, branch=segment.branch))
        else:
            converted.append(Segment(role=role, text=segment.text, branch=segment.branch))
    return Sample(id="prompt", segments=converted, media=media)
