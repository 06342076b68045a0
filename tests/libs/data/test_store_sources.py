"""Sources in an object store are read as those in a folder are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rebus import registry
from rebus.data.folders import StoreFolder
from rebus.data.readers import Location, Quarantined
from rebus.data.readers.base import Root
from rebus.data.sources import build_reader
from rebus.errors import InvalidArgumentError, NotFoundError
from rebus.store import Store
from rebus.v1.dataset_pb2 import Source
from tests.libs.data.reading import png
from tests.libs.data.test_reader_formats import tar

TURNS = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]
FILES = {
    "captions.csv": b"image,caption\nimages/a.png,one\nimages/b.png,two\nimages/none.png,three\n",
    "images/a.png": png(1),
    "images/b.png": png(2),
    "conversations.json": json.dumps([{"image": "images/a.png", "conversations": TURNS}]).encode(),
    "notes/first.txt": b"eins\n\nzwei",
    "shards/s-0.tar": tar([("x.png", png(3)), ("x.txt", b"three")]),
    "shards/s-1.tar": tar([("y.png", png(4)), ("y.txt", b"four")]),
}


def _items(reader: str, root: Root) -> list[Any]:
    """Samples, and in place of bad ones where they are; what is missing is called by its own name in each."""
    built = registry.build("reader", {"name": reader, "source": "here"}, Location(root))
    return [item.location if isinstance(item, Quarantined) else item for item in built]


@pytest.mark.parametrize("reader", ["image-folder", "llava", "text", "webdataset"])
def test_a_store_reads_as_a_folder(any_store: Store, tmp_path: Path, reader: str) -> None:
    folder = tmp_path / "folder"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        any_store.put(name, data)
    found = _items(reader, StoreFolder(any_store))
    assert found == _items(reader, folder)
    assert len(found) >= 1
    assert [item for item in found if isinstance(item, str)] == ["captions.csv:4"] * (reader == "image-folder")


def test_limits_and_missing_objects_are_named(any_store: Store) -> None:
    any_store.put("big.txt", b"x" * 100)
    folder = StoreFolder(any_store)
    with (
        pytest.raises(InvalidArgumentError, match=r"big\.txt: more than the limit of 99 bytes"),
        folder.open("big.txt", max_bytes=99),
    ):
        pass
    with pytest.raises(InvalidArgumentError, match=r"big\.txt: more than the limit of 99 bytes"):
        folder.read("big.txt", max_bytes=99)
    with pytest.raises(NotFoundError):
        folder.check("none.txt")


@pytest.mark.slow
def test_a_uri_names_a_prefix_or_an_object(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, data in FILES.items():
        s3_store.put(f"pets/{name}", data)
    pets = f"{s3_store.url}/pets"
    assert len(list(build_reader(Source(reader="webdataset", uri=f"{pets}/shards"), "source"))) == 2
    assert len(list(build_reader(Source(reader="image-folder", uri=f"{pets}/captions.csv"), "source"))) == 3
    with pytest.raises(NotFoundError, match="source.uri: nothing at"):
        build_reader(Source(reader="text", uri=f"{pets}/none"), "source")
    monkeypatch.setenv("REBUS_INGEST_STORES", f"{pets}/shards")
    assert len(list(build_reader(Source(reader="webdataset", uri=f"{pets}/shards"), "source"))) == 2
    with pytest.raises(InvalidArgumentError, match="source.uri: .* is outside the stores"):
        build_reader(Source(reader="text", uri=f"{pets}/notes"), "source")
