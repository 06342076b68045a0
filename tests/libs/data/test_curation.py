"""Curators against brute force, and what a chain of them leaves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rebus.data import curation
from rebus.data.curation import Dropped, curate
from rebus.data.dataset import open_version, write_version
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError
from rebus.registry import components
from rebus.store import Store

# They judge by what another resource of the store holds.
NEEDS_THE_STORE = {"contamination", "embed", "text-quality"}
REQUIRED: dict[str, dict[str, Any]] = {
    "contamination": {"benchmark": "datasets/b/versions/1"},
    "text-quality": {"good": "datasets/g/versions/1", "bad": "datasets/b/versions/1"},
}


def image(width: int, height: int, shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(identifier: str, texts: Sequence[str], media: Sequence[bytes] = (), roles: str = "") -> Sample:
    speakers: dict[str, Any] = {"u": "user", "a": "assistant"}
    segments = [Segment(type="image", media=i) for i in range(len(media))]
    segments += [
        Segment(text=text, role=speakers[role]) for text, role in zip(texts, roles or "u" * len(texts), strict=True)
    ]
    return Sample(id=identifier, segments=segments, media=list(media))


def random_samples(count: int, seed: int = 0) -> list[Sample]:
    """Few distinct texts and images, so that every kind of repeat occurs."""
    rng = np.random.default_rng(seed)
    pictures = [image(8, 8, shade) for shade in range(3)]
    return [
        sample(
            f"s{i}",
            [f"text {t}" for t in rng.integers(0, 3, rng.integers(1, 3))],
            [pictures[m] for m in rng.integers(0, 3, rng.integers(0, 3))],
        )
        for i in range(count)
    ]


KEYS: dict[str, Any] = {
    "text-and-media": lambda s: ([(g.role, g.text) for g in s.segments if g.type == "text"], list(s.media)),
    "text": lambda s: [(g.role, g.text) for g in s.segments if g.type == "text"],
    "media": lambda s: list(s.media),
}


@pytest.mark.parametrize("by", list(KEYS))
def test_exact_dedup_equals_comparing_all_pairs(store: Store, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr(curation, "_BATCH_ROWS", 7)  # repeats must be found across batches
    rows = random_samples(60)
    version = write_version(store, "datasets/x", rows)
    expected: dict[str, str] = {}
    for i, later in enumerate(rows):
        for earlier in rows[:i]:
            comparable = by != "media" or later.media
            if comparable and KEYS[by](later) == KEYS[by](earlier):
                expected[later.id] = f"repeats {earlier.id}"
                break

    curated = curate(store, version.name, [{"name": "exact-dedup", "by": by}])

    assert {d.sample_id: d.reason for d in curated.dropped} == expected
    assert 0 < len(expected) < 60
    kept = [s.id for s in open_version(store, curated.version.name).scan()]
    assert kept == [s.id for s in rows if s.id not in expected]


def test_who_says_it_matters_to_dedup(store: Store) -> None:
    rows = [
        sample("a", ["x", "y"], roles="ua"),
        sample("b", ["x", "y"], roles="au"),
        sample("c", ["x", "y"], roles="ua"),
    ]
    version = write_version(store, "datasets/x", rows)

    curated = curate(store, version.name, [{"name": "exact-dedup"}])

    assert curated.dropped == [Dropped(2, "c", "exact-dedup", "repeats a")]


def test_text_length_counts_the_characters_of_all_texts(store: Store) -> None:
    rows = [sample(str(n), ["é" * (n // 2), "x" * (n - n // 2)]) for n in range(2, 8)]
    version = write_version(store, "datasets/x", rows)

    curated = curate(store, version.name, [{"name": "text-length", "min_chars": 3, "max_chars": 5}])

    assert {d.sample_id: d.reason for d in curated.dropped} == {
        "2": "2 characters of text, fewer than 3",
        "6": "6 characters of text, more than 5",
        "7": "7 characters of text, more than 5",
    }


def test_image_size_looks_at_every_image_and_records_the_shortest_side(store: Store) -> None:
    rows = [
        sample("square", ["t"], [image(40, 40)]),
        sample("small", ["t"], [image(40, 40), image(31, 90)]),
        sample("long", ["t"], [image(33, 100)]),
        sample("none", ["t"]),
        sample("two", ["t"], [image(90, 80), image(35, 50)]),
    ]
    version = write_version(store, "datasets/x", rows)

    curated = curate(store, version.name, [{"name": "image-size", "min_side": 32, "max_aspect": 3}])

    assert [(d.row, d.sample_id, d.reason) for d in curated.dropped] == [
        (1, "small", "image 1 is 31x90, its shorter side below 32"),
        (2, "long", "image 0 is 33x100, its aspect above 3"),
    ]
    table = open_version(store, curated.version.name).table(["id", "min_image_side"])
    assert table.to_pydict() == {"id": ["square", "none", "two"], "min_image_side": [40, None, 35]}


def test_a_chain_names_the_curator_and_later_ones_see_only_what_is_kept(store: Store) -> None:
    tiny, fine = image(4, 4), image(40, 40)
    rows = [
        sample("a", ["same"], [tiny]),
        sample("b", ["same"], [tiny]),
        sample("c", ["ok"], [fine]),
        sample("d", ["x"]),
    ]
    version = write_version(store, "datasets/x", rows)
    seen: list[tuple[int, int]] = []

    curated = curate(
        store,
        version.name,
        [{"name": "image-size"}, {"name": "exact-dedup"}, {"name": "text-length", "min_chars": 2}],
        producer="curations/c",
        on_rows=lambda done, total: seen.append((done, total)),
    )

    assert [(d.sample_id, d.curator) for d in curated.dropped] == [
        ("a", "image-size"), ("b", "image-size"), ("d", "text-length")
    ]  # fmt: skip
    assert seen[-1] == (4, 4)
    assert (curated.version.parent, curated.version.producer) == (version.name, "curations/c")
    again = curate(store, curated.version.name, [{"name": "image-size"}])  # its column is there already
    assert list(again.dropped) == []
    assert open_version(store, again.version.name).table(["min_image_side"]).to_pydict() == {"min_image_side": [40]}


def test_curation_rewrites_no_media(store: Store) -> None:
    big = [sample(f"s{i}", ["t"], [np.random.default_rng(i).bytes(50_000)]) for i in range(10)]
    version = write_version(store, "datasets/x", [*big, sample("short", ["."])])
    before = sum(info.size for info in store.list("datasets/x"))

    curate(store, version.name, [{"name": "exact-dedup"}, {"name": "text-length", "min_chars": 1}])

    assert sum(info.size for info in store.list("datasets/x")) - before < 20_000


def test_wrong_curators_are_refused(store: Store) -> None:
    version = write_version(store, "datasets/x", [sample("a", ["t"])]).name

    with pytest.raises(InvalidArgumentError, match="did you mean 'exact-dedup'"):
        curate(store, version, [{"name": "exact-dedupe"}])
    with pytest.raises(InvalidArgumentError, match=r"curators\[1\].min_char: unknown key; did you mean 'min_chars'"):
        curate(store, version, [{"name": "exact-dedup"}, {"name": "text-length", "min_char": 3}])
    with pytest.raises(InvalidArgumentError, match="no row would remain"):
        curate(store, version, [{"name": "text-length", "min_chars": 3}])


def test_every_curator_reads_and_adds_columns_that_fit() -> None:
    from rebus.data.rows import SCHEMA

    made = [
        component.target(component.config(**REQUIRED.get(component.name, {}))) for component in components("curator")
    ]
    added = {name: type_ for curator in made for name, type_ in curator.adds.items()}
    assert not set(added) & set(SCHEMA.names)
    everything = pa.schema([*SCHEMA, *added.items()])
    empty = pa.RecordBatch.from_pylist([], schema=everything)
    for component, curator in zip(components("curator"), made, strict=True):
        assert component.summary
        assert set(curator.reads) <= set(everything.names)
        assert set(curator.rewrites) <= set(SCHEMA.names) - {"id", "media"}
        if component.name not in NEEDS_THE_STORE:
            assert list(curator.judge(curator.observe(empty.select(list(curator.reads)))).reasons) == []


def test_curating_again_fills_the_rows_that_were_added_since_and_leaves_the_others(store: Store) -> None:
    old = write_version(store, "datasets/x", [sample("old", ["t"], [image(40, 40)])])
    curated = curate(store, old.name, [{"name": "image-size"}])
    added = [sample("new", ["t"], [image(35, 50)]), sample("tiny", ["t"], [image(4, 4)]), sample("none", ["t"])]
    longer = write_version(store, "datasets/x", added, base=curated.version.name)
    before = sum(info.size for info in store.list("datasets/x"))

    again = curate(store, longer.name, [{"name": "image-size"}])

    table = open_version(store, again.version.name).table(["id", "min_image_side"])
    assert table.to_pydict() == {"id": ["old", "new", "none"], "min_image_side": [40, 35, None]}
    assert [(row.sample_id, row.curator) for row in again.dropped] == [("tiny", "image-size")]
    assert open_version(store, longer.name).table(["min_image_side"]).column(0).to_pylist() == [40, None, None, None]
    assert sum(info.size for info in store.list("datasets/x")) - before < 20_000
