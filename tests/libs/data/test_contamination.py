"""Planted benchmark items are found in training data, and little else is."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rebus.data.contamination import BenchmarkIndex, contamination_report
from rebus.data.contamination_match import By, MatchConfig
from rebus.data.curation import curate
from rebus.data.dataset import derive_version, open_version, write_version
from rebus.data.sample import Sample, Segment
from rebus.data.shingles import ngram_hashes
from rebus.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from rebus.store import Store

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ri") for b in ("dan", "fel", "gor", "hin", "jun", "sol")]


def prose(rng: np.random.Generator, words: int) -> str:
    return " ".join(WORDS[at] for at in rng.integers(0, len(WORDS), words))


def picture(seed: int, kind: str = "PNG", size: int = 96) -> bytes:
    grid = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grid).resize((96, 96), Image.Resampling.BICUBIC).resize((size, size)).save(buffer, kind)
    return buffer.getvalue()


def row(identifier: str, text: str, *media: bytes) -> Sample:
    images = [Segment(type="image", media=at) for at in range(len(media))]
    return Sample(id=identifier, segments=[*images, Segment(text=text)], media=list(media))


def planted(store: Store) -> tuple[str, str, set[str], set[str]]:
    """Training and benchmark versions; the training rows that hold an item, and the items held."""
    rng = np.random.default_rng(0)
    questions = [f"what is the name of the thing that is shown {prose(rng, 20)}" for _ in range(80)]
    items = [row(f"q{at}", text, picture(at)) for at, text in enumerate(questions)]
    clean = [row(f"clean{at}", prose(rng, 60), picture(1000 + at)) for at in range(120)]
    template = [row(f"same{at}", questions[0][:45] + prose(rng, 30), picture(2000 + at)) for at in range(30)]
    quoted = [row(f"text{at}", f"{prose(rng, 30)} {questions[at].upper()}! {prose(rng, 9)}") for at in range(40)]
    copied = [row(f"image{at}", prose(rng, 30), picture(at, "JPEG", 64)) for at in range(30, 60)]
    training = write_version(store, "datasets/train", [*clean, *quoted, *template, *copied])
    benchmark = write_version(store, "datasets/bench", items)
    holders = {sample.id for sample in (*quoted, *copied)}
    return training.name, benchmark.name, holders, {f"q{at}" for at in range(60)}


def test_planted_items_are_found_with_their_reasons(store: Store) -> None:
    training, benchmark, holders, held = planted(store)

    curated = curate(store, training, [{"name": "contamination", "benchmark": benchmark}])

    found = {dropped.sample_id: dropped.reason for dropped in curated.dropped}
    hits = len(holders & set(found))
    assert (hits / len(found) >= 0.95, hits / len(holders) >= 0.95) == (True, True)
    assert found["text7"] == f"has 100% of its 8-grams of q7 in {benchmark}"
    assert found["image44"].endswith(f"of 128 bits of q44 in {benchmark}")
    report = contamination_report(store, training, benchmark)
    assert len(held & set(report.seen)) / len(report.seen) >= 0.95
    assert len(held & set(report.seen)) / len(held) >= 0.95
    assert report.share == len(report.seen) / 80
    assert report.seen["q7"] == ("text7", "100% of its 8-grams")
    assert report.to_plain()["share"] == report.share


def test_recall_and_precision_of_each_way(store: Store) -> None:
    """Copies as they are met: sentences edited and quoted inside longer texts, pictures saved again at other sizes."""
    rng = np.random.default_rng(3)
    questions = [prose(rng, 40) for _ in range(60)]
    items = [row(f"q{at}", text, picture(at, size=128)) for at, text in enumerate(questions)]
    benchmark = write_version(store, "datasets/bench", items).name

    def edited(text: str) -> str:
        words = text.split()
        words[int(rng.integers(len(words)))] = "another"  # touches 8 of 33 8-grams at most
        return f"{prose(rng, 20)} {' '.join(words).title()}, {prose(rng, 20)}"

    resaved = [picture(at, ("JPEG", "WEBP", "PNG")[at % 3], (48, 80, 200)[at % 3]) for at in range(60)]
    texts = [row(f"t{at}", edited(questions[at]) if at < 30 else prose(rng, 80), picture(900 + at)) for at in range(60)]
    images = [row(f"i{at}", prose(rng, 80), resaved[at] if at >= 30 else picture(500 + at)) for at in range(60)]
    training = write_version(store, "datasets/train", [*texts, *images]).name
    held: dict[By, set[str]] = {"text": {f"q{at}" for at in range(30)}, "image": {f"q{at}" for at in range(30, 60)}}

    for way, expected in held.items():
        found = set(contamination_report(store, training, benchmark, MatchConfig(by=(way,))).seen)
        recall, precision = len(found & expected) / len(expected), len(found & expected) / max(len(found), 1)
        print(f"{way}: recall {recall:.3f}, precision {precision:.3f}")
        assert (recall >= 0.95, precision >= 0.95) == (True, True), way


def test_every_item_that_shows_a_picture_is_found(store: Store) -> None:
    """Many questions may be asked about one picture."""
    rng = np.random.default_rng(4)
    items = [row(f"q{at}", prose(rng, 20), picture(at // 5)) for at in range(20)]
    benchmark = write_version(store, "datasets/bench", items).name
    training = write_version(store, "datasets/train", [row("copy", prose(rng, 20), picture(2, "JPEG", 64))]).name

    report = contamination_report(store, training, benchmark, MatchConfig(by=("image",)))

    assert set(report.seen) == {f"q{at}" for at in range(10, 15)}


def test_the_gate_stops_what_saw_too_much_and_lets_cleaned_data_pass(store: Store) -> None:
    training, benchmark, _, _ = planted(store)
    cleaned = curate(store, training, [{"name": "contamination", "benchmark": benchmark}]).version.name

    contamination_report(store, cleaned, benchmark).require(0.0)
    with pytest.raises(
        FailedPreconditionError, match=r"holds 75.0% of datasets/bench/versions/1, more than 10.0%; e.g."
    ):
        contamination_report(store, training, benchmark).require(0.1)


def test_marking_drops_nothing(store: Store) -> None:
    training, benchmark, holders, _ = planted(store)

    curated = curate(store, training, [{"name": "contamination", "benchmark": benchmark, "drop": False}])

    assert len(curated.dropped) == 0
    table = open_version(store, curated.version.name).table(["id", "contaminated_by"])
    assert {r["id"] for r in table.to_pylist() if r["contaminated_by"]} == holders


def test_text_overlap_equals_counting_ngrams_by_hand(store: Store) -> None:
    """Of a template that more than 64 items share, nothing counts; batches do not confuse the items."""
    rng = np.random.default_rng(1)
    items = [row(f"q{at}", f"{'one two three ' if at % 2 else ''}{prose(rng, 6)}") for at in range(600)]
    samples = [row(f"s{at}", f"{items[at * 6].segments[0].text} {prose(rng, 5)}"[at % 9 :]) for at in range(90)]
    config = MatchConfig(by=("text",), ngram=3, min_overlap=0.3)
    index = BenchmarkIndex(open_version(store, write_version(store, "datasets/b", items).name), config)
    reader = open_version(store, write_version(store, "datasets/t", samples).name)
    (batch,) = reader.scan_columns(config.reads)

    found = {(match.row, match.item) for match in index.matches(batch)}

    def grams(rows: list[Sample]) -> list[set[int]]:
        hashes, offsets = ngram_hashes(pa.array([sample.segments[0].text for sample in rows]), 3)
        return [set(own.tolist()) for own in np.split(hashes, offsets[1:-1])]

    asked, trained = grams(items), grams(samples)
    counts = Counter(gram for own in asked for gram in own)
    telling = [{gram for gram in own if counts[gram] <= 64} for own in asked]
    expected = {
        (at, item.id)
        for at, held in enumerate(trained)
        for own, item in zip(telling, items, strict=True)
        if own and len(own & held) / len(own) >= 0.3
    }
    assert found == expected
    assert len(expected) >= 80


def test_embeddings_find_what_looks_like_an_item(store: Store) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((6, 8))
    nearby = vectors + 0.01 * rng.standard_normal((6, 8))
    nearby[3:] = rng.standard_normal((3, 8))
    versions = []
    for name, values in (("bench", vectors), ("train", nearby)):
        version = write_version(store, f"datasets/{name}", [row(f"{name}{at}", "t") for at in range(6)])
        column = {"image_embeddings": pa.array(values.tolist(), pa.list_(pa.float32()))}
        versions.append(derive_version(store, version.name, columns=column).name)

    report = contamination_report(store, versions[1], versions[0], MatchConfig(by=("embedding",)))

    assert {item: sample for item, (sample, _) in report.seen.items()} == {
        f"bench{at}": f"train{at}" for at in range(3)
    }


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, InvalidArgumentError),
        ({"benchmark": "datasets/none/versions/1"}, NotFoundError),
        ({"benchmark": "datasets/b/versions/1", "by": []}, InvalidArgumentError),
        ({"benchmark": "datasets/b/versions/1", "max_distance": 99}, InvalidArgumentError),
    ],
)
def test_wrong_settings_are_refused(store: Store, settings: dict[str, Any], error: type[Exception]) -> None:
    version = write_version(store, "datasets/b", [row("a", "t")]).name
    with pytest.raises(error):
        curate(store, version, [{"name": "contamination", **settings}])
