"""Columns of a batch as curators want them."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported.)
from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rebus.errors import invalid


def fixed_bytes(column: pa.Array) -> NDArray[np.uint8]:
    """uint8 ``[N, width]``: the values of a column of binary strings of one width."""
    width = column.type.byte_width
    flat = np.frombuffer(column.buffers()[1] or b"", np.uint8, len(column) * width, column.offset * width)
    return flat.reshape(len(column), width)


def from_bytes(rows: NDArray[Any]) -> pa.Array:
    """The inverse of ``fixed_bytes`` for an array ``[N, k]`` of any item size."""
    type_ = pa.binary(rows.shape[1] * rows.itemsize)
    return pa.Array.from_buffers(type_, len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))])


def joined_texts(batch: pa.RecordBatch) -> pa.Array:
    """One string a row: the texts of its segments, a line each."""
    flat, lengths = _of_type(batch, "text", "text")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(offsets, flat), "\n")


def texts(batch: pa.RecordBatch) -> list[list[str]]:
    """The texts of each row's segments."""
    flat, lengths = _of_type(batch, "text", "text")
    return _cut(flat.to_pylist(), lengths)


def images(batch: pa.RecordBatch) -> list[list[bytes]]:
    """The images that each row shows, in the order of its segments; reads ``segments`` and ``media``."""
    indexes, lengths = _of_type(batch, "image", "media")
    shown = zip(batch.column("media").to_pylist(), _cut(indexes.to_pylist(), lengths), strict=True)
    return [[media[number] for number in numbers] for media, numbers in shown]


def _cut(flat: list[Any], lengths: NDArray[np.int64]) -> list[list[Any]]:
    items = iter(flat)
    return [list(islice(items, length)) for length in lengths.tolist()]


def _of_type(batch: pa.RecordBatch, kind: str, field: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """A field of all segments of one type, and how many of them each row has."""
    segments = batch.column("segments")
    flat = segments.flatten()
    wanted = pc.equal(pc.struct_field(flat, "type"), kind)
    rows = np.repeat(np.arange(len(segments)), np.diff(segments.offsets.to_numpy()))
    lengths = np.bincount(rows[wanted.to_numpy(zero_copy_only=False)], minlength=len(segments))
    return pc.struct_field(flat, field).filter(wanted), lengths


def vectors(batch: pa.RecordBatch, column: str) -> list[np.ndarray]:
    """Unit vectors of each row, float32 ``[k, D]``, from a column of vectors or of lists of vectors.

    A null row has none. ``InvalidArgumentError`` names the column if it holds anything else.
    """
    values = batch.column(column)
    nested = _is_list(values.type) and _is_list(values.type.value_type)
    number = values.type.value_type.value_type if nested else getattr(values.type, "value_type", None)
    if number is None or not pa.types.is_floating(number):
        raise invalid(column, f"expected vectors of floats or lists of them, found {values.type}")
    rows: Sequence[Any] = values.to_pylist()
    listed = rows if nested else [None if row is None else [row] for row in rows]
    return [_unit(row or []) for row in listed]


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _unit(rows: Sequence[Sequence[float]]) -> np.ndarray:
    matrix = np.asarray(rows, dtype=np.float32).reshape(len(rows), len(rows[0]) if rows else 0)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix / np.where(norms > 0, norms, 1)
