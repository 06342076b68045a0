"""Parquet and Arrow files that say less than they hold: refused before they are unpacked; rows before them stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebus.data.readers.base import Quarantined, ReaderLimits
from rebus.data.readers.parquet_pages import announced
from rebus.data.readers.tables import table_rows
from rebus.errors import InvalidArgumentError
from tools.chaos.hostile_tables import spoil, write_arrow, write_parquet

LIMITS = ReaderLimits(max_chunk_bytes=8 << 20, max_sample_bytes=4 << 20)
GOOD = pa.table({"x": ["a", "b", None, "c", "d"], "y": [[0], [1, 2], [], None, [3]]})


def rows_of(path: Path) -> list[Any]:
    """The rows of a file, or the reason in place of one that is bad."""
    found = table_rows(path.parent, path.name, ["x"], LIMITS)
    return [row.reason if isinstance(row, Quarantined) else row[1]["x"] for row in found]


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("name", ["a.arrow", "a-file.arrow"])
def test_arrow_streams_and_files_are_read_whatever_packs_them(
    tmp_path: Path, name: str, compression: str | None
) -> None:
    write_arrow(tmp_path / name, GOOD, compression=compression)
    assert rows_of(tmp_path / name) == ["a", "b", None, "c", "d"]
    write_arrow(tmp_path / name, GOOD.set_column(0, "x", GOOD["x"].dictionary_encode()), compression=compression)
    assert rows_of(tmp_path / name) == ["a", "b", None, "c", "d"]


@pytest.mark.parametrize("name", ["a.arrow", "a-file.arrow"])
def test_a_packed_batch_is_refused_before_it_is_unpacked(tmp_path: Path, name: str) -> None:
    table = pa.concat_tables([GOOD.select(["x"]), pa.table({"x": ["z" * (9 << 20)]})])
    write_arrow(tmp_path / name, table, compression="zstd")

    assert rows_of(tmp_path / name) == [
        "a", "b", None, "c", "d", f"a batch of more than the limit of {8 << 20} bytes; what follows was not read"
    ]  # fmt: skip


def test_dictionaries_are_bounded_together(tmp_path: Path) -> None:
    one = pa.array(["z" * (3 << 20)]).dictionary_encode()
    path = tmp_path / "a.arrow"
    write_arrow(path, pa.table({"x": one, "y": one}), compression="zstd")
    assert len(rows_of(path)) == 1
    assert not rows_of(path)[0].startswith("a batch")

    write_arrow(path, pa.table({"x": one, "y": one, "z": one}), compression="zstd")
    assert rows_of(path) == [f"a batch of more than the limit of {8 << 20} bytes; what follows was not read"]


def test_lists_that_repeat_a_value_are_counted_before_they_take_memory(tmp_path: Path) -> None:
    """Of one value of 1 MiB a row holds 3, another 100 in as many bytes: more than a sample may have."""
    one = pa.array(["z" * (1 << 20), "a"])
    lists = pa.ListArray.from_arrays([0, 4, 104], pa.DictionaryArray.from_arrays([0, 1, 0, 0] + [0] * 100, one))
    path = tmp_path / "a.parquet"
    write_parquet(path, pa.table({"x": lists}), dictionary_pagesize_limit=1 << 30, store_schema=False)
    before = pa.total_allocated_bytes()

    rows = table_rows(tmp_path, path.name, ["x"], LIMITS)
    first = next(rows)
    held = pa.total_allocated_bytes() - before
    assert not isinstance(first, Quarantined)
    assert [len(value) for value in first[1]["x"]] == [1 << 20, 1, 1 << 20, 1 << 20]
    (second,) = rows

    assert held < 8 << 20
    assert isinstance(second, Quarantined)
    assert "larger than a sample may be" in second.reason


def test_a_number_without_an_end_in_a_page_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    whole = write_parquet(
        path, pa.table({"x": [f"row {at}" for at in range(200_000)]}), compression="none", use_dictionary=False
    )
    path.write_bytes(whole[:5] + b"\xff" * 100_000 + whole[100_005:])
    (reason,) = rows_of(path)
    assert "a page's header holds a number of more than 64 bits" in reason


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_pages_announce_what_a_column_holds(tmp_path: Path, version: Any, compression: str) -> None:
    table = pa.table({"x": [f"row {at}" for at in range(5000)], "y": [[at] * 3 for at in range(5000)]})
    path = tmp_path / "a.parquet"
    write_parquet(path, table, compression=compression, data_page_version=version, data_page_size=2000)
    group = pq.ParquetFile(path).metadata.row_group(0)

    with path.open("rb") as file:
        for at, values in ((0, 5000), (1, 15_000)):
            pages = announced(file, group.column(at))
            assert pages.num_values == values == group.column(at).num_values
            assert 0 < pages.largest_bytes <= group.column(at).total_uncompressed_size
            assert 0 < pages.dictionary_bytes <= pages.largest_bytes


def test_no_hostile_file_gives_a_row(tmp_path: Path) -> None:
    expected = spoil(tmp_path, GOOD.slice(0, 1), "x")
    for name in expected.keys() - {"repeated.parquet", "repeated.arrow"}:  # their rows are good here, if large
        try:
            rows = list(table_rows(tmp_path, name, ["x"], LIMITS))
        except InvalidArgumentError:
            continue
        assert [isinstance(row, Quarantined) for row in rows] == [True], name
