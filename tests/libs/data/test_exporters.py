"""Export, then ingest, is the identity on what a format can hold; what it cannot hold is refused by name."""

from __future__ import annotations

import json
import string
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rebus import registry
from rebus.data import exporters
from rebus.data.rows import to_batch
from rebus.data.sample import SPLITS, Sample, Segment
from rebus.errors import AlreadyExistsError, InvalidArgumentError
from tests.libs.data.reading import png, read
from tests.libs.data.test_reader_formats import jpeg
from tests.libs.data.test_reader_formats import tar as make_tar
from tests.media_files import tone, wav

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
PLAIN = st.text(string.ascii_letters + string.digits + " .,<>é\n", min_size=1, max_size=30)
MEDIA = [png(1), png(2), jpeg(3)]
SOUND = wav(tone(0.1))
SHARE = st.floats(0, 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    media = draw(st.lists(st.sampled_from([*MEDIA, SOUND]), max_size=3))
    boxes = st.none() | st.lists(st.tuples(SHARE, SHARE, SHARE, SHARE), max_size=2).map(tuple)
    common = {
        "role": st.sampled_from(["system", "user", "assistant"]), "branch": st.integers(0, 3), "loss": st.booleans(),
        "task": st.just("") | TEXTS, "regions": boxes,
    }  # fmt: skip
    text = st.builds(Segment, text=TEXTS, media=st.integers(-1, len(media)), **common)
    sound = {"type": st.just("audio"), "start_seconds": st.none() | SHARE}
    shown = st.sampled_from(range(len(media))).flatmap(
        lambda at: st.builds(
            Segment,
            media=st.just(at),
            **(common | (sound if media[at] == SOUND else {"type": st.just("image")})),
        )
    )
    return Sample(
        id=draw(TEXTS),
        family=draw(st.just("") | TEXTS),
        split=draw(st.sampled_from(SPLITS)),
        segments=draw(st.lists(text | shown if media else text, min_size=1, max_size=5)),
        media=media,
        source=draw(st.just("") | TEXTS),
        license=draw(st.just("") | TEXTS),
        metadata=draw(st.dictionaries(TEXTS, JSON, max_size=3)),
    )


@st.composite
def conversations(draw: st.DrawFn) -> Sample:
    """Samples that LLaVA's format can hold."""
    said = PLAIN.map(str.strip).filter(lambda text: text and "<image>" not in text)
    segments: list[Segment] = []
    media: list[bytes] = []
    for role in draw(st.lists(st.sampled_from(["system", "user"]), max_size=3)):
        if draw(st.booleans()):
            segments.append(Segment(type="image", media=len(media), role=role, task="conversation"))
            media.append(draw(st.sampled_from(MEDIA)))
        segments.append(Segment(text=draw(said), role=role, task="conversation"))
    for text in draw(st.lists(said, min_size=1, max_size=2)):
        segments.append(Segment(text=text, role="assistant", loss=True, task="conversation"))
    return Sample(id=draw(said), segments=segments, media=media)


def exported(name: str, given: list[Sample], folder: Path, **config: Any) -> Path:
    built = registry.build("exporter", {"name": name, **config})
    assert exporters.export(built, given, folder) == len(given)
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.mark.parametrize("config", [{"name": "parquet", "file_bytes": 1}, {"name": "webdataset", "shard_samples": 2}])
@given(drawn=st.lists(samples(), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_parquet_and_webdataset_hold_everything(scratch: Path, config: dict[str, Any], drawn: list[Sample]) -> None:
    folder = Path(tempfile.mkdtemp(dir=scratch)) / "x"
    exported(given=drawn, folder=folder, **config)

    found, bad = read(folder, config["name"])

    assert bad == {}
    assert to_batch(found).to_pylist() == to_batch(drawn).to_pylist()


@given(drawn=st.lists(conversations(), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_llava_holds_conversations(scratch: Path, drawn: list[Sample]) -> None:
    folder = exported("llava", drawn, Path(tempfile.mkdtemp(dir=scratch)) / "x")

    found, bad = read(folder, "llava")

    assert bad == {}
    assert [(s.segments, s.media, s.metadata["id"]) for s in found] == [(s.segments, s.media, s.id) for s in drawn]


ASKED = Segment(text="q", task="conversation")
TOLD = Segment(text="a", role="assistant", loss=True, task="conversation")
SHOWN = Segment(type="image", media=0, task="conversation")


@pytest.mark.parametrize(
    ("segments", "media", "problem", "droppable"),
    [
        ([replace(TOLD, branch=1)], 0, "'branch'", "branch"),
        ([replace(TOLD, loss=False)], 0, "'loss'", "loss"),
        ([replace(ASKED, loss=True), TOLD], 0, "'loss'", "loss"),
        ([replace(TOLD, task="caption")], 0, "'task'", "task"),
        ([replace(TOLD, regions=())], 0, "'regions'", "regions"),
        ([SHOWN, SHOWN, TOLD], 1, "another order", ""),
        ([replace(SHOWN, media=1), SHOWN, TOLD], 2, "another order", ""),
        ([TOLD], 1, "never", ""),
        ([ASKED], 0, "the assistant says nothing", ""),
        ([replace(ASKED, text="an <image>"), TOLD], 0, "says <image>", ""),
        ([replace(TOLD, text=" a")], 0, "white space", ""),
        ([replace(SHOWN, role="assistant"), replace(ASKED, text="x"), TOLD], 1, "without a word", ""),
    ],
)
def test_llava_refuses_what_it_would_lose(
    tmp_path: Path, segments: list[Segment], media: int, problem: str, droppable: str
) -> None:
    sample = Sample(id="s1", segments=segments, media=MEDIA[:media])

    with pytest.raises(InvalidArgumentError, match=f"sample.s1.: LLaVA's format cannot hold .*{problem}"):
        exported("llava", [sample], tmp_path / "x")

    assert list(tmp_path.iterdir()) == []
    if droppable:
        exported("llava", [sample], tmp_path / "x", drop=[droppable])


def test_other_tools_read_the_shards(tmp_path: Path) -> None:
    sample = Sample(id="s", segments=[SHOWN, ASKED, TOLD], media=[jpeg()])
    exported("webdataset", [sample, sample], tmp_path / "x")

    with tarfile.open(tmp_path / "x/shard-000000.tar") as tar:
        assert tar.getnames() == [f"00000000{i}.{ending}" for i in (0, 1) for ending in ("0.jpg", "txt", "sample.json")]
        with Image.open(tar.extractfile("000000000.0.jpg")) as image:  # pyright: ignore[reportArgumentType]
            assert image.size == (8, 8)
        assert tar.extractfile("000000000.txt").read() == b"a"  # pyright: ignore[reportOptionalMemberAccess]


def test_an_export_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    built = registry.build("exporter", {"name": "webdataset"})
    good = Sample(id="s", segments=[TOLD])

    def failing() -> Iterator[Sample]:
        yield good
        raise InvalidArgumentError("no more")

    with pytest.raises(InvalidArgumentError, match="no more"):
        exporters.export(built, failing(), tmp_path / "x")
    with pytest.raises(InvalidArgumentError, match="no samples"):
        exporters.export(built, [], tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    exporters.export(built, [good], tmp_path / "x")
    with pytest.raises(AlreadyExistsError, match="is not empty"):
        exporters.export(built, [good], tmp_path / "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        exporters.export(built, [good], tmp_path / "file/x")


@pytest.mark.parametrize("spoil", ["segments", "role", "metadata", "media", "id", "deep"])
def test_exported_records_are_not_trusted(tmp_path: Path, spoil: str) -> None:
    folder = exported("webdataset", [Sample(id="s", segments=[SHOWN, TOLD], media=[png()])], tmp_path / "x")
    with tarfile.open(folder / "shard-000000.tar") as tar:
        record = json.loads(tar.extractfile("000000000.sample.json").read())  # pyright: ignore
    change: dict[str, Any] = {
        "segments": {"segments": None}, "role": {"segments": [{**record["segments"][1], "role": "robot"}]},
        "metadata": {"metadata": "[]"}, "media": {"media": ["1.png"]}, "id": {"id": 7},
        "deep": {"metadata": '{"a":' * 100_000},
    }[spoil]  # fmt: skip
    data = json.dumps({**record, **change}).encode()
    (folder / "shard-000000.tar").write_bytes(make_tar([("k.0.png", png()), ("k.sample.json", data)]))

    found, bad = read(folder, "webdataset")

    assert (found, list(bad)) == ([], ["shard-000000.tar/k"])
