"""What the messages of an Arrow stream announce, told before one of them is unpacked.

A batch's buffers may be compressed, each behind the length that it will have. Headers are FlatBuffers, of which this
reads the few fields that say where those lengths stand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from rebus.errors import InvalidArgumentError

_CONTINUES = 0xFFFF_FFFF
_MAX_HEADER_BYTES = 16 << 20
# Header types of a message, and the places of fields in their tables.
_DICTIONARY, _BATCH = 2, 3
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
_ID_OF_DICTIONARY, _DATA_OF_DICTIONARY, _IS_DELTA = 0, 1, 2
_BUFFERS, _COMPRESSION = 2, 3
_STORED = -1  # instead of a length: a buffer that compression would not have made smaller


@dataclass(frozen=True)
class Message:
    """One message: whether it is a batch of rows, and the bytes that its body takes, packed and unpacked."""

    is_batch: bool
    num_bytes: int
    # Of a dictionary, which is kept: its number, and whether it goes on behind what was kept under that number.
    dictionary: int | None = None
    is_delta: bool = False


def messages(file: BinaryIO) -> Iterator[Message]:
    """Every message from where the file stands to the end of the stream; ``InvalidArgumentError`` where it breaks."""
    while header := _header(file):
        try:
            message, length = _message(file, header)
        except struct.error:
            raise InvalidArgumentError("a message's header is damaged") from None
        yield message
        file.seek(length, 1)


def _header(file: BinaryIO) -> bytes:
    """The next header; empty at the end."""
    size = _u32(file.read(4))
    if size == _CONTINUES:  # before Arrow 0.15 the size came at once
        size = _u32(file.read(4))
    if size > _MAX_HEADER_BYTES:
        raise InvalidArgumentError(f"a message's header of {size} bytes")
    return file.read(size)


def _u32(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _message(file: BinaryIO, header: bytes) -> tuple[Message, int]:
    """A message and the length of its body, before which the file stands again."""
    table = _Table(header, struct.unpack_from("<I", header)[0])
    kind, length = table.number(_HEADER_TYPE, "<B"), table.number(_BODY_LENGTH, "<q")
    if length < 0:
        raise InvalidArgumentError("a message's body of less than nothing")
    rows = table.table(_HEADER) if kind in (_DICTIONARY, _BATCH) else None
    dictionary, is_delta = None, False
    if kind == _DICTIONARY and rows:
        dictionary, is_delta = rows.number(_ID_OF_DICTIONARY, "<q"), bool(rows.number(_IS_DELTA, "<B"))
        rows = rows.table(_DATA_OF_DICTIONARY)
    unpacked = 0
    if rows and rows.place(_COMPRESSION):
        start = file.tell()
        for offset, size in rows.pairs(_BUFFERS):
            if size >= 8 and 0 <= offset < length:
                file.seek(start + offset)
                (announced,) = struct.unpack("<q", file.read(8))
                unpacked += size if announced == _STORED else max(announced, 0)
        file.seek(start)
    return Message(kind == _BATCH, max(length, unpacked), dictionary, is_delta), length


class _Table:
    """A table of a FlatBuffer; ``struct.error`` where it leads outside."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        if self._fields < 0:
            raise struct.error
        self._size = struct.unpack_from("<H", data, self._fields)[0]

    def place(self, field: int) -> int:
        """Where a field's value stands; 0 if the table lacks it."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, self._fields + entry)
        return self._at + offset if offset else 0

    def number(self, field: int, format: str) -> int:
        """A number; 0 if the table lacks it."""
        place = self.place(field)
        return struct.unpack_from(format, self._data, place)[0] if place else 0

    def table(self, field: int) -> _Table | None:
        """The table that a field refers to."""
        place = self.place(field)
        return _Table(self._data, place + struct.unpack_from("<I", self._data, place)[0]) if place else None

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of pairs of 64-bit numbers."""
        place = self.place(field)
        if place:
            start = place + struct.unpack_from("<I", self._data, place)[0]
            (count,) = struct.unpack_from("<I", self._data, start)
            for number in range(count):
                yield struct.unpack_from("<qq", self._data, start + 4 + 16 * number)
