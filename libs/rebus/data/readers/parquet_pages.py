"""What the pages of a Parquet column announce, added up before one of them is unpacked.

A footer says how large a column is; nothing makes it true. What memory is taken by stands in the header of each page,
which is read here (Thrift's compact protocol) from page to page, so that a small file that unpacks to gigabytes is
known before it does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from rebus.errors import InvalidArgumentError

# Fields of a page's header, and of what it holds for its kind of page.
_UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8
_NUM_VALUES = 1
# Statistics of a page stand in its header, so that it may be long.
_HEADER_BYTES = (1 << 10, 1 << 16, 16 << 20)
_MAX_NESTING = 8
# Thrift's types in the compact protocol.
_TRUE, _FALSE, _BYTE, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 6, 7, 8, 9, 10, 12


@dataclass(frozen=True)
class Pages:
    """A column chunk as its pages announce it: all together, and what one value may be repeated from."""

    largest_bytes: int
    num_values: int
    dictionary_bytes: int


def announced(file: BinaryIO, column: Any) -> Pages:
    """The pages of a column chunk, given its metadata; ``InvalidArgumentError`` for headers that are none."""
    at = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < at:
        at = column.dictionary_page_offset
    end = min(at + column.total_compressed_size, file.seek(0, os.SEEK_END))
    largest = values = dictionary = 0
    while at < end and values < column.num_values:
        header, length = _header(file, at, end)
        size, packed = _number(header, _UNCOMPRESSED), _number(header, _COMPRESSED)
        largest = max(largest, size, packed)
        if _DICTIONARY in header:
            dictionary = max(dictionary, size)
        for kind in (_DATA, _DATA_V2):
            if kind in header:
                values += _number(header[kind], _NUM_VALUES)
        at += length + packed
    return Pages(largest, values, dictionary)


def _number(fields: Any, number: int) -> int:
    value = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(value, int) or value < 0:
        raise InvalidArgumentError("a page's header lacks its size")
    return value


def _header(file: BinaryIO, at: int, end: int) -> tuple[dict[int, Any], int]:
    """The fields of the header at ``at``, and its length."""
    for size in _HEADER_BYTES:
        file.seek(at)
        data = file.read(min(size, end - at))
        try:
            reader = _Compact(data)
            return reader.struct(), reader.at
        except IndexError:  # it goes on behind what was read
            continue
    raise InvalidArgumentError("a page's header does not end")


class _Compact:
    """Reads structs of Thrift's compact protocol; ``IndexError`` where the data ends first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Field number -> value of what a header is made of; other fields are passed over."""
        if depth > _MAX_NESTING:
            raise InvalidArgumentError("a page's header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if _BYTE < kind <= _I64:
            return self._zigzag()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):  # no field that counts is one
            raise InvalidArgumentError("a page's header holds a list")
        lengths = {_BYTE: 1, _DOUBLE: 8}
        self._skip(self._varint() if kind == _BINARY else lengths.get(kind, len(self._data) + 1))
        return None

    def _skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self._data):
            raise IndexError

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise InvalidArgumentError("a page's header holds a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
