"""``rebus export``: files that read back as the version's rows, and one readable line for what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

from rebus.data.dataset import write_version
from rebus.data.readers import Location
from rebus.data.rows import to_batch
from rebus.data.sample import Sample, Segment
from rebus.registry import build
from rebus.store import Store
from tests.tools.rebus.conftest import Command

SAMPLES = [
    Sample(id=f"s{i}", split=split, segments=[Segment(text=f"t{i}", role="assistant", loss=True)])
    for i, split in enumerate(["train", "test", "train"])
]


def test_a_version_is_exported_and_reads_back(rebus: Command, store: Store, tmp_path: Path) -> None:
    write_version(store, "datasets/d", SAMPLES)

    result = rebus("export", "d", tmp_path / "x", "--as", "parquet", "--format", "json")

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["samples"] == 3
    found = list(build("reader", {"name": "parquet"}, Location(tmp_path / "x")))
    assert to_batch(found).to_pylist() == to_batch(SAMPLES).to_pylist()
    assert rebus("export", "d/1", tmp_path / "y", "--split", "test").exit_code == 0
    (only,) = build("reader", {"name": "webdataset"}, Location(tmp_path / "y"))
    assert only.id == "s1"


def test_what_goes_wrong_is_said_in_a_line(rebus: Command, store: Store, tmp_path: Path) -> None:
    write_version(store, "datasets/d", SAMPLES)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")

    for arguments, reason in (
        (("d", tmp_path / "full"), "is not empty"),
        (("none", tmp_path / "x"), "datasets/none"),
        (("d", tmp_path / "x", "--as", "webdatset"), "did you mean 'webdataset'"),
        (("d", tmp_path / "x", "--as", "llava"), "LLaVA's format cannot hold 'task'"),
        (("d", tmp_path / "x", "--split", "dev"), "no rows of split 'dev'"),
        (("d", tmp_path / "x", "--set", "shards=3"), "unknown key"),
    ):
        result = rebus("export", *arguments)
        assert result.exit_code != 0
        assert reason in result.stderr
    assert not (tmp_path / "x").exists()
