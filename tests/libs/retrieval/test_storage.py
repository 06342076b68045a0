"""Stored indexes: round trip, and refusal of every byte that is not what was published."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebus.config import canonical_json
from rebus.errors import DataLossError, NotFoundError, ResourceExhaustedError
from rebus.retrieval import storage
from rebus.retrieval.search import SearchIndex, build_index
from rebus.retrieval.storage import HEADER, ROWS, VECTORS, Header, open_index, publish_index, read_index
from rebus.store import Store, manifests

NAME = "indexes/x"


def index(name: str = "flat", count: int = 20, dimension: int = 8) -> SearchIndex:
    vectors = np.random.default_rng(0).standard_normal((count, dimension)).astype(np.float32)
    return build_index({"name": name}, vectors, np.arange(count) * 2, [f"id-{at}" for at in range(count)])


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    """A local copy of a published flat index, to be damaged."""
    publish_index(store, NAME, index(), "flat")
    with manifests.fetch(store, NAME, tmp_path / "cache") as fetched:
        return Path(shutil.copytree(fetched, tmp_path / "copy", copy_function=shutil.copyfile))


@pytest.mark.parametrize("name", ["flat", "hnsw"])
def test_a_stored_index_answers_as_before(store: Store, tmp_path: Path, name: str) -> None:
    built = index(name)
    manifest = publish_index(store, NAME, built, name)
    opened = open_index(store, NAME, tmp_path / "cache")
    queries = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    assert opened.search(queries, 4) == built.search(queries, 4)
    assert {entry.path for entry in manifest.entries} == {HEADER, VECTORS, ROWS}


@pytest.mark.slow
def test_a_bucket_serves_it_too(s3_store: Store, tmp_path: Path) -> None:
    publish_index(s3_store, NAME, index(), "flat")
    assert open_index(s3_store, NAME, tmp_path / "cache").num_vectors == 20


@pytest.mark.parametrize("part", [HEADER, VECTORS, ROWS])
def test_a_flipped_byte_is_data_loss(store: Store, tmp_path: Path, part: str) -> None:
    publish_index(store, NAME, index(), "flat")
    data = bytearray(store.get(f"{NAME}/{part}"))
    data[len(data) // 2] ^= 1
    store.put(f"{NAME}/{part}", bytes(data))
    with pytest.raises(DataLossError, match=part):
        open_index(store, NAME, tmp_path / "cache")


def test_an_unpublished_index_does_not_exist(store: Store, tmp_path: Path) -> None:
    store.put(f"{NAME}/{VECTORS}", b"half")
    with pytest.raises(NotFoundError, match="indexes/x is not published"):
        open_index(store, NAME, tmp_path / "cache")


def test_a_size_beyond_the_limit_is_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_index(store, NAME, index(), "flat")
    monkeypatch.setattr(storage, "MAX_INDEX_BYTES", 100)
    with pytest.raises(ResourceExhaustedError, match="more than the limit of 100"):
        open_index(store, NAME, tmp_path / "cache")


@pytest.mark.parametrize("offset", [0, 4, 8, 32, 33], ids=["kind", "dimension", "count", "trained", "metric"])
def test_a_crafted_file_never_reaches_faiss(folder: Path, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With digests that fit, the file's own counts must still agree with the header."""
    path = folder / VECTORS
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))
    monkeypatch.setattr(storage.faiss, "read_index", lambda path: pytest.fail("FAISS parsed it"))
    with pytest.raises(DataLossError, match=r"vectors\.faiss"):
        read_index(folder, NAME)


@pytest.mark.parametrize("cut", [10, 100, -1])
def test_a_file_of_another_length_never_reaches_faiss(folder: Path, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / VECTORS
    data = path.read_bytes()
    path.write_bytes(data[:cut] if cut > 0 else data + b"\0")
    monkeypatch.setattr(storage.faiss, "read_index", lambda path: pytest.fail("FAISS parsed it"))
    with pytest.raises(DataLossError, match=r"vectors\.faiss"):
        read_index(folder, NAME)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        canonical_json({"algorithm": "flat", "dimension": 8, "num_vectors": 20, "format": 2}),
        canonical_json({"algorithm": "pickle", "dimension": 8, "num_vectors": 20}),
        canonical_json({"algorithm": "flat", "dimension": 0, "num_vectors": 20}),
        canonical_json(Header(algorithm="flat", dimension=8, num_vectors=21)),
        canonical_json(Header(algorithm="hnsw", dimension=8, num_vectors=20)),
    ],
)
def test_a_header_that_does_not_fit_is_refused(folder: Path, header: bytes) -> None:
    (folder / HEADER).write_bytes(header)
    with pytest.raises(DataLossError, match="indexes/x"):
        read_index(folder, NAME)


@pytest.mark.parametrize(
    "rows",
    [
        {"row": list(range(19)), "sample_id": ["a"] * 19},
        {"row": [-1] * 20, "sample_id": ["a"] * 20},
        {"row": [0.5] * 20, "sample_id": ["a"] * 20},
        {"row": list(range(20))},
    ],
)
def test_rows_that_do_not_fit_are_refused(folder: Path, rows: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(rows), folder / ROWS)
    with pytest.raises(DataLossError, match=r"rows\.parquet"):
        read_index(folder, NAME)
