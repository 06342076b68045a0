"""The readers of audio and video: every kind of bad row beside good ones, and the shape of what is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rebus import registry
from rebus.data.dataset import open_version, write_version
from rebus.data.readers import Location, Quarantined, ReaderLimits
from rebus.data.readers.exact import RECORD_FIELDS, exact_sample
from rebus.data.rows import to_batch
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError
from rebus.store import Store
from tests.media_files import clip, encoded, tone, wav

FILES = {
    "audio": {"a": wav(tone(1.0)), "b": encoded(tone(1.0), "flac", "flac"), "long": wav(tone(3.0))},
    "video": {"a": clip(), "b": clip("libvpx", "webm"), "long": clip(frames=50)},
}
LIMITS = {"audio": {"max_seconds": 2.0, "max_bytes": 97_000}, "video": {"max_frames": 40, "max_bytes": 97_000}}
TOO_LONG = {
    "audio": "3.0 s or more, more than the limit of 2 s",
    "video": "50 frames or more, more than the limit of 40",
}
KINDS = pytest.mark.parametrize("kind", ["audio", "video"])


def read(folder: Path, kind: str, rows: list[dict[str, Any]], **settings: Any) -> list[Sample | Quarantined]:
    """Reads ``rows`` as a JSONL table over the files of ``kind``."""
    for name, data in FILES[kind].items():
        (folder / name).write_bytes(data)
    (folder / "cut").write_bytes(FILES[kind]["a"][:-600])
    (folder / "playlist").write_bytes(b"#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n")
    (folder / "large").write_bytes(bytes(100_000))
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(registry.build("reader", {"name": kind, "captions": "t.jsonl", **settings}, Location(folder)))


@KINDS
def test_the_good_are_kept_and_the_bad_are_named(kind: str, tmp_path: Path) -> None:
    bad = {
        "cut": "cut: (truncated|corrupt)",
        "playlist": "playlist: not a file of",
        "large": "large: more than the limit of 97000 bytes",
        "long": f"long: {TOO_LONG[kind]}",
        "../a": "inside the source's folder",
        "none": "none: no such file",
    }
    rows = [{kind: name, "caption": f"{name} is heard"} for name in ("a", *bad, "b")]

    items = read(tmp_path, kind, rows, limits={kind: LIMITS[kind]}, prompt="What is it?", source="s")

    samples = [item for item in items if isinstance(item, Sample)]
    reasons = [item for item in items if isinstance(item, Quarantined)]
    assert [sample.media for sample in samples] == [[FILES[kind]["a"]], [FILES[kind]["b"]]]
    task = {"audio": "transcript", "video": "caption"}[kind]
    assert samples[0].segments == [
        Segment(type=kind, media=0),  # pyright: ignore[reportArgumentType]
        Segment(text="What is it?", branch=1, task=task),
        Segment(text="a is heard", role="assistant", loss=True, branch=1, task=task),
    ]
    assert samples[0].metadata["file"] == "a"
    assert samples[0].metadata["seconds"] == pytest.approx({"audio": 1.0, "video": 3.0}[kind])
    assert [item.location for item in reasons] == [f"t.jsonl:{n}" for n in range(2, 8)]
    for item, reason in zip(reasons, bad.values(), strict=True):
        assert re.search(reason, item.reason), item.reason


@KINDS
def test_parts_in_time(kind: str, tmp_path: Path) -> None:
    times = [(0, "0.5"), (0.25, None), ("", 1.0), ("x", 1), (-1, 1), (0.5, 0.5), (0, 9.0), (True, [])]
    rows = [{kind: "a", "caption": "c", "from": start, "to": end} for start, end in times]

    items = read(tmp_path, kind, rows, start_column="from", end_column="to")

    found = [(i.segments[0].start_seconds, i.segments[0].end_seconds) for i in items if isinstance(i, Sample)]
    reasons = [item.reason for item in items if isinstance(item, Quarantined)]
    assert found == [(0.0, 0.5), (0.25, None), (None, 1.0)]
    assert reasons[0] == "from: expected seconds, found 'x'"
    assert "from: -1 s is outside the" in reasons[1]
    assert "end_seconds: expected a time after 0.5 s, found 0.5" in reasons[2]
    assert "to: 9 s is outside the" in reasons[3]
    assert "expected seconds" in reasons[4]


@KINDS
def test_samples_of_a_version_are_those_that_were_read(kind: str, tmp_path: Path, store: Store) -> None:
    rows = [{kind: name, "caption": name, "from": 0.5} for name in ("a", "b")]
    items = [item for item in read(tmp_path, kind, rows, start_column="from") if isinstance(item, Sample)]

    version = write_version(store, "datasets/media", items)

    assert list(open_version(store, version.name).scan()) == items
    assert version.num_media == 2


@KINDS
def test_a_missing_column_shows_before_anything_is_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text(f"{kind},caption\n")

    with pytest.raises(InvalidArgumentError, match="no column 'from'; its columns"):
        registry.build("reader", {"name": kind, "start_column": "from"}, Location(tmp_path))


@KINDS
def test_an_exported_sample_comes_back_and_its_media_are_checked(kind: str) -> None:
    segments = [Segment(type=kind, media=0, end_seconds=0.5), Segment(text="a", start_seconds=0.25)]  # pyright: ignore[reportArgumentType]
    sample = Sample(id="x", segments=segments, media=[FILES[kind]["a"]])
    (row,) = to_batch([sample]).to_pylist()
    record = {name: row[name] for name in RECORD_FIELDS}

    assert exact_sample(record, sample.media, ReaderLimits()) == sample
    with pytest.raises(InvalidArgumentError, match=r"media\[0\]: not a file of"):
        exact_sample(record, [b"#EXTM3U"], ReaderLimits())
