"""How many samples an MP4 file announces, told before FFmpeg makes room for them.

FFmpeg keeps about 40 bytes for every sample of a file's index, and a few bytes may announce billions: a constant size
and a count (``stsz``), or a fragment whose samples all take the defaults (``trun``). Such a promise is compared with
what the file holds.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from rebus.errors import invalid

# Boxes whose content FFmpeg passes over; in everything else it may look for tables at any depth.
_OPAQUE = (b"mdat", b"free", b"skip", b"wide")
_TABLES = re.compile(rb"stsz|stz2|trun|cmov")


def check_announced(data: bytes, field: str) -> None:
    """``InvalidArgumentError`` if the file's tables announce more samples, of a byte or more, than it has bytes."""
    announced = 0
    for start, end in _boxes(data):
        for found in _TABLES.finditer(data, start, end):
            if found[0] == b"cmov":
                raise invalid(field, "holds a compressed header, which is not read")
            announced += _bytes_announced(found[0], data[found.end() : found.end() + 12])
            if announced > len(data):
                raise invalid(field, f"announces {announced} samples or more, and holds {len(data)} bytes")


def _boxes(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the outermost boxes that FFmpeg looks into begin and end."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, at + 8)
        end = at + size if size >= 8 else len(data)
        if kind not in _OPAQUE:
            yield at, min(end, len(data))
        at = end


def _bytes_announced(kind: bytes, body: bytes) -> int:
    """The fewest bytes that the samples of a table take, given how its box begins."""
    if len(body) < 12:
        return 0
    _, first, second = struct.unpack(">III", body)
    if kind == b"stsz":  # a size that all samples share, or 0, and their number
        return max(first, 1) * second
    return second if kind == b"stz2" else first
