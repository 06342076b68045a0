"""Samples that were written as they are, by an exporter, and are read back as they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rebus.data.audio import check_audio
from rebus.data.readers.base import ReaderLimits, bounded_text, check_media, checked_image
from rebus.data.readers.files import parse_json
from rebus.data.rows import SAMPLE_COLUMNS
from rebus.data.sample import Sample, Segment, SegmentType
from rebus.data.video import Video
from rebus.errors import InvalidArgumentError, invalid

# What of a sample is not media; its metadata is JSON text, as in a dataset.
RECORD_FIELDS = tuple(name for name in SAMPLE_COLUMNS if name != "media")
_MAX_NAME_CHARS = 4096


def exact_sample(record: Mapping[str, Any], media: Sequence[bytes], limits: ReaderLimits) -> Sample:
    """The sample that ``record`` (``RECORD_FIELDS`` of a row) and ``media`` were written from.

    Whoever wrote them is not trusted: ``InvalidArgumentError`` for whatever a reader would not let through.
    """
    check_media(media, limits)
    metadata = parse_json(_text(record, "metadata", limits.max_line_bytes))
    if not isinstance(metadata, dict):
        raise invalid("metadata", f"expected a JSON object, found {type(metadata).__name__}")
    segments = _segments(record.get("segments"), limits)
    for segment in segments:
        _check(segment, media, limits)
    names = {
        name: _text(record, name, _MAX_NAME_CHARS) for name in RECORD_FIELDS if name not in ("metadata", "segments")
    }
    return Sample(segments=segments, media=list(media), metadata=metadata, **names)


def _check(segment: Segment, media: Sequence[bytes], limits: ReaderLimits) -> None:
    if segment.type == "text":
        bounded_text(segment.text, "segments.text", limits)
    elif 0 <= segment.media < len(media):
        _check_media(segment.type, media[segment.media], f"media[{segment.media}]", limits)


def _check_media(kind: SegmentType, data: bytes, field: str, limits: ReaderLimits) -> None:
    if kind == "image":
        checked_image(data, field, limits)
    elif kind == "audio":
        check_audio(data, limits=limits.audio, field=field)
    else:
        Video(data, limits=limits.video, field=field).check()


def _segments(values: Any, limits: ReaderLimits) -> list[Segment]:
    if not isinstance(values, list):
        raise invalid("segments", f"expected a list, found {type(values).__name__}")
    if len(values) > limits.max_segments:
        raise invalid("segments", f"{len(values)}, more than the limit of {limits.max_segments}")
    try:
        return _adapter().validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidArgumentError(f"segments.{where}: {first['msg']}") from None


@cache
def _adapter() -> TypeAdapter[list[Segment]]:
    return TypeAdapter(list[Segment])


def _text(record: Mapping[str, Any], name: str, max_chars: int) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise invalid(name, f"expected text, found {type(value).__name__}")
    if len(value) > max_chars:
        raise invalid(name, f"{len(value)} characters, more than the limit of {max_chars}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(name, "is not valid Unicode") from None
    return value
