"""Indexes in the store: published by manifest, and measured before FAISS parses a byte.

``indexes/<id>/`` holds ``vectors.faiss``, ``rows.parquet`` (row and sample id of each vector), ``header.json`` and,
written last, ``manifest.json`` with the size and SHA-256 of each. FAISS believes the counts in its files, so a crafted
one would make it write beyond its memory: only a file whose digest, kind, dimension, count and length agree is opened.
"""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rebus import config as configs
from rebus.errors import DataLossError, InvalidArgumentError, ResourceExhaustedError
from rebus.retrieval.indexes import MAGIC
from rebus.retrieval.search import SearchIndex
from rebus.store import Store, manifests
from rebus.v1.common_pb2 import Manifest

HEADER, VECTORS, ROWS = "header.json", "vectors.faiss", "rows.parquet"
FORMAT = 1
MAX_DIMENSION = 65_536
MAX_VECTORS = 1_000_000_000
# Bytes of an index that one process will hold.
MAX_INDEX_BYTES = 64 << 30
# What every FAISS file starts with: kind, dimension, count, two unused counts, whether it is trained, metric.
_PREFIX = struct.Struct("<4siqqq?i")
_INNER_PRODUCT = 0
# After the prefix of a flat index: the count of its floats.
_FLAT_OVERHEAD = _PREFIX.size + 8


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an index is, in words of our own; FAISS's file must agree with it."""

    format: int = FORMAT
    algorithm: str
    dimension: int
    num_vectors: int

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format={self.format} is not one that this code reads ({FORMAT})")
        if self.algorithm not in MAGIC:
            raise ValueError(f"algorithm={self.algorithm!r} is none of {', '.join(MAGIC)}")
        if not 1 <= self.dimension <= MAX_DIMENSION or not 1 <= self.num_vectors <= MAX_VECTORS:
            raise ValueError(f"dimension={self.dimension} or num_vectors={self.num_vectors} is out of bounds")


def publish_index(store: Store, name: str, index: SearchIndex, algorithm: str) -> Manifest:
    """Writes the parts below ``name`` (``indexes/x``), then the manifest that makes them visible."""
    header = Header(algorithm=algorithm, dimension=index.dimension, num_vectors=index.num_vectors)
    with tempfile.TemporaryDirectory(prefix="rebus-index-") as temporary:
        folder = Path(temporary)
        (folder / HEADER).write_bytes(configs.canonical_json(header))
        faiss.write_index(index.faiss_index, str(folder / VECTORS))
        pq.write_table(pa.table({"row": index.rows, "sample_id": list(index.sample_ids)}), folder / ROWS)
        return manifests.publish_folder(store, name, folder)


def open_index(store: Store, name: str, cache_dir: Path) -> SearchIndex:
    """The published index ``name``, through a verified copy below ``cache_dir``.

    Raises ``NotFoundError`` if it is not published, ``DataLossError`` if its bytes are not what was published or
    contradict each other, ``ResourceExhaustedError`` if it is too large.
    """
    size = sum(entry.size for entry in manifests.read(store, name).entries)
    if size > MAX_INDEX_BYTES:
        raise ResourceExhaustedError(f"{name} has {size} bytes, more than the limit of {MAX_INDEX_BYTES}")
    with manifests.fetch(store, name, cache_dir) as folder:
        return read_index(folder, name)


def read_index(folder: Path, name: str) -> SearchIndex:
    """Reads an index's parts from ``folder``; ``DataLossError`` naming ``name`` where they contradict each other."""
    header = _read_header(folder / HEADER, name)
    _check_vectors(folder / VECTORS, header, name)
    table = _read_rows(folder / ROWS, header, name)
    index = faiss.read_index(str(folder / VECTORS))
    return SearchIndex(index, table.column("row").to_numpy(), table.column("sample_id").to_pylist())


def _read_header(path: Path, name: str) -> Header:
    try:
        return configs.build(Header, configs.parse_yaml(path.read_text(encoding="utf-8")), where=HEADER)
    except (OSError, UnicodeDecodeError, InvalidArgumentError) as error:
        raise DataLossError(f"{name}/{HEADER}: {error}") from None


def _check_vectors(path: Path, header: Header, name: str) -> None:
    """Compares what FAISS's file says of itself, and its length, with the header."""
    if not path.is_file():
        raise DataLossError(f"{name}/{VECTORS}: missing")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_PREFIX.size)
    if len(start) < _PREFIX.size:
        raise DataLossError(f"{name}/{VECTORS}: {size} bytes are too few for an index")
    magic, dimension, count, _, _, trained, metric = _PREFIX.unpack(start)
    floats = _FLAT_OVERHEAD + 4 * header.dimension * header.num_vectors
    found = (magic, dimension, count, trained, metric)
    expected = (MAGIC[header.algorithm], header.dimension, header.num_vectors, True, _INNER_PRODUCT)
    if found != expected or size < floats or (header.algorithm == "flat" and size != floats):
        raise DataLossError(
            f"{name}/{VECTORS}: the file says {found} in {size} bytes, the header {expected} in at least {floats}"
        )


def _read_rows(path: Path, header: Header, name: str) -> Any:
    try:
        table = pq.read_table(path, columns=["row", "sample_id"])
    except (OSError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise DataLossError(f"{name}/{ROWS}: unreadable: {error}") from None
    types = [str(field.type) for field in table.schema]
    if table.num_rows != header.num_vectors or types != ["int64", "string"]:
        raise DataLossError(f"{name}/{ROWS}: {table.num_rows} rows of {types} for {header.num_vectors} vectors")
    if np.min(table.column("row").to_numpy()) < 0:
        raise DataLossError(f"{name}/{ROWS}: holds a negative row")
    return table
