"""Parquet and Arrow files, good and hostile: bombs of every kind that the formats allow, lying and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_BOMB = 128 << 20
_REPEATED = 1 << 20
_REPEATS = 512
_VALUES = 20_000_000
_DEEP = 200_000


def write_parquet(path: Path, table: pa.Table, **options: Any) -> bytes:
    """Writes a Parquet file and returns its bytes."""
    pq.write_table(table, path, **{"compression": "zstd", "write_statistics": False, **options})
    return path.read_bytes()


def write_arrow(path: Path, table: pa.Table, **options: Any) -> bytes:
    """Writes an Arrow stream, a file if its name says so, and returns its bytes."""
    made = pa.ipc.new_file if path.stem.endswith("file") else pa.ipc.new_stream
    packed = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as sink, made(sink, table.schema, options=packed) as writer:
        writer.write_table(table)
    return path.read_bytes()


def spoil(folder: Path, good: pa.Table, column: str) -> dict[str, int]:
    """Writes hostile files of the columns of ``good`` into a folder: file -> the reasons that it must give at least.

    ``column`` is where the bombs lie.
    """
    rows = good.slice(0, 1)
    return {**_damaged(folder, good), **_unpacking(folder, rows, column), **_repeating(folder, rows, column)}


def _damaged(folder: Path, good: pa.Table) -> dict[str, int]:
    whole = write_parquet(folder / "whole.parquet", good)
    stream = write_arrow(folder / "whole.arrow", good)
    files = {
        "cut.parquet": whole[: len(whole) // 2],
        "tail.parquet": whole[:-4] + b"PAR2",
        "footer.parquet": whole[:-8] + struct.pack("<I", 0x7FFF_FFFF) + b"PAR1",
        "page.parquet": whole[:20] + b"\xff" * 60 + whole[80:],
        "empty.parquet": b"",
        "zeros.parquet": bytes(4096),
        "deep.parquet": deep_parquet(_DEEP),
        "cut.arrow": stream[: len(stream) // 3],
        "noise.arrow": b"\xff" * 1000,
        "zeros.arrow": b"",
        "header.arrow": b"\xff\xff\xff\xff" + struct.pack("<I", 0x7FFF_FFFF) + bytes(64),
    }
    (folder / "whole.parquet").unlink()
    (folder / "whole.arrow").unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return dict.fromkeys(files, 1)


def _unpacking(folder: Path, rows: pa.Table, column: str) -> dict[str, int]:
    """Much behind little: compressed pages and buffers, also under a footer that makes them small."""
    bomb = _with(rows, column, pa.array(["\1" * _BOMB], pa.large_string()))
    whole = write_parquet(folder / "bomb.parquet", bomb, use_dictionary=False)
    (folder / "lying.parquet").write_bytes(_belittled(folder / "bomb.parquet", whole, column))
    write_arrow(folder / "bomb.arrow", bomb, compression="zstd")
    write_arrow(folder / "bomb-file.arrow", bomb, compression="zstd")
    write_arrow(folder / "dictionary.arrow", _with(rows, column, bomb[column].dictionary_encode()), compression="lz4")
    nothing = pa.ListArray.from_arrays([0, _VALUES], pa.nulls(_VALUES, pa.string()))
    write_parquet(folder / "nulls.parquet", _with(rows, column, nothing))
    names = ("bomb.parquet", "lying.parquet", "nulls.parquet", "bomb.arrow", "bomb-file.arrow", "dictionary.arrow")
    return dict.fromkeys(names, 1)


def _repeating(folder: Path, rows: pa.Table, column: str) -> dict[str, int]:
    """One value told many times over."""
    one = pa.array(["\1" * _REPEATED])
    many = pa.DictionaryArray.from_arrays(pa.array([0] * _REPEATS, pa.int8()), one)
    repeated = _with(rows.take([0] * _REPEATS), column, many)
    write_parquet(folder / "repeated.parquet", repeated, dictionary_pagesize_limit=1 << 30)
    write_arrow(folder / "repeated.arrow", repeated)
    listed = pa.ListArray.from_arrays([0, _REPEATS], many)
    write_arrow(folder / "listed.arrow", _with(rows, column, listed))
    plainly = {"dictionary_pagesize_limit": 1 << 30, "store_schema": False}  # or readers would be told of dictionaries
    write_parquet(folder / "listed.parquet", _with(rows, column, listed), **plainly)
    nothing: Any = pa.nulls(4000**2)
    for _ in range(2):  # lists of a fixed size take no memory, whatever they hold
        nothing = pa.FixedSizeListArray.from_arrays(nothing, 4000)
    write_arrow(folder / "fixed.arrow", _with(rows, column, nothing))
    one_row = ("listed.parquet", "listed.arrow", "fixed.arrow")
    return {"repeated.parquet": _REPEATS, "repeated.arrow": _REPEATS, **dict.fromkeys(one_row, 1)}


def _with(table: pa.Table, column: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), column, values)


def _belittled(path: Path, data: bytes, column: str) -> bytes:
    """The file with a footer by which the column takes nothing: of the two places that tell its size, the last."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    size = next(
        group.column(at).total_uncompressed_size
        for at in range(group.num_columns)
        if group.column(at).path_in_schema == column
    )
    told = _zigzag(size)
    nothing = b"\x82" + b"\x80" * (len(told) - 2) + b"\0"  # 1, in as many bytes
    footer = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    return data[:footer] + data[footer:].replace(told, nothing)


def deep_parquet(depth: int) -> bytes:
    """A Parquet file whose schema nests groups so deeply, and which holds nothing."""
    group = b"\x35\x02\x18\x01d\x15\x02\0"  # optional, named d, of one child
    elements = b"\x35\x00\x18\x01s\x15\x02\0" + group * depth + b"\x15\x02\x25\x02\x18\x01l\0"
    schema = b"\x15\x02\x19\xfc" + _varint(depth + 2) + elements
    footer = schema + b"\x16\0\x19\x0c\0"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _zigzag(number: int) -> bytes:
    return _varint(number << 1)


def _varint(number: int) -> bytes:
    out = b""
    while number >= 128:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])
