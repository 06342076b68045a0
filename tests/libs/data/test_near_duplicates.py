"""Near-duplicate finders against planted duplicates, brute force and the formula of their chances."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance

from rebus.data import duplicates, image_hash, minhash, shingles
from rebus.data.curation import curate
from rebus.data.dataset import open_version, write_version
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError
from rebus.store import Store

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgkl" for b in ("a", "éi", "ou") for c in ("m", "nt", "rs", "st", "x")]


def prose(rng: np.random.Generator, words: int) -> list[str]:
    return [VOCABULARY[at] for at in rng.integers(0, len(VOCABULARY), words)]


def edited(rng: np.random.Generator, words: list[str]) -> list[str]:
    """Up to three words replaced, left out or put in."""
    out = list(words)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(out)))
        kind = rng.integers(3)
        out[at : at + (kind != 2)] = [] if kind == 1 else prose(rng, 1)
    return out


def text_rows(texts: list[str]) -> list[Sample]:
    return [Sample(id=f"s{at:04}", segments=[Segment(text=text)]) for at, text in enumerate(texts)]


def precision_recall(found: set[str], planted: set[str]) -> tuple[float, float]:
    hits = len(found & planted)
    return hits / max(len(found), 1), hits / len(planted)


def test_ngrams_equal_those_cut_by_hand() -> None:
    texts = ["", "a", "a b", "Hello, World! hello", "he\u0301llo wörld ß", "汉 字 语 言", "  ", "ﬁne fine", None]
    for unit in ("words", "characters"):
        for n in (1, 2, 3, 5):
            hashes, offsets = shingles.ngram_hashes(pa.array(texts), n, unit)
            known: dict[tuple[str, ...], int] = {}
            for at, text in enumerate(texts):
                expected = _ngrams(text or "", n, unit)
                own = hashes[offsets[at] : offsets[at + 1]].tolist()
                assert len(own) == len(expected)
                for gram, value in zip(expected, own, strict=True):
                    assert known.setdefault(gram, value) == value
            assert len(set(known.values())) == len(known)


def _ngrams(text: str, n: int, unit: str) -> list[tuple[str, ...]]:
    folded = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split()
    tokens = plain if unit == "words" else list(" ".join(plain))
    return [tuple(tokens[at : at + n]) for at in range(max(len(tokens) - n + 1, 1))] if tokens else []


@pytest.mark.paper("yi")
def test_minhash_match_rate_follows_the_formula() -> None:
    """2,000 documents: the share of pairs proposed is 1 - (1 - s^r)^b of their exact Jaccard similarity s."""
    rng = np.random.default_rng(0)
    universe = rng.integers(0, 1 << 63, 1 << 20).astype(np.uint64)
    bands = minhash.Bands(bands=10, rows=3, seed=1)
    for common in (10, 25, 40, 60):  # of 70 elements each
        sets, exact = [], common / (140 - common)
        for at in range(250):
            own = universe[at * 200 : at * 200 + 140]
            sets += [own[:70], np.concatenate([own[:common], own[70 : 140 - common]])]
        offsets = np.arange(0, 70 * len(sets) + 1, 70)
        sketches = minhash.sketch(np.concatenate(sets), offsets, bands)
        pairs = minhash.similar_pairs(sketches, bands, threshold=0)
        rate = np.mean(pairs[:, 0] // 2 == pairs[:, 1] // 2) * len(pairs) / 250
        expected = float(bands.match_rate(np.array(exact)))
        assert abs(rate - expected) <= 3 * np.sqrt(expected * (1 - expected) / 250) + 1e-3
        twins = np.arange(500).reshape(-1, 2)
        estimate = minhash.similarity(sketches, twins).mean()
        assert abs(estimate - exact) <= 4 * np.sqrt(exact * (1 - exact) / bands.places / 250)


def test_components_equal_a_brute_force_closure() -> None:
    rng = np.random.default_rng(2)
    for count in (1, 7, 40):
        pairs = rng.integers(0, count, (count // 2, 2))
        reach = np.eye(count, dtype=int)
        for left, right in pairs:
            reach[left, right] = reach[right, left] = 1
        for _ in range(count):
            reach = (reach @ reach > 0).astype(int)
        assert duplicates.firsts(count, pairs).tolist() == reach.argmax(axis=1).tolist()


def test_minhash_dedup_finds_planted_edits_and_nothing_else(store: Store) -> None:
    """Beside the edited copies stand documents that share a third of their text with another."""
    rng = np.random.default_rng(3)
    originals = [prose(rng, int(rng.integers(60, 120))) for _ in range(300)]
    third = [words[: len(words) // 3] + prose(rng, 2 * len(words) // 3) for words in originals[:100]]
    texts = [" ".join(words) for words in originals + third]
    copies = [" ".join(edited(rng, originals[at % 300])) for at in range(400)]
    version = write_version(store, "datasets/x", text_rows(texts + copies))

    curated = curate(store, version.name, [{"name": "minhash-dedup"}])

    planted = {f"s{at:04}" for at in range(400, 800)}
    precision, recall = precision_recall({row.sample_id for row in curated.dropped}, planted)
    assert (precision >= 0.95, recall >= 0.95) == (True, True), (precision, recall)
    right = [f"text of s{(int(row.sample_id[1:]) - 400) % 300:04}" in row.reason for row in curated.dropped]
    assert np.mean(right) > 0.95


def test_minhash_dedup_is_blind_to_case_and_punctuation_and_keeps_rows_without_text(store: Store) -> None:
    picture = Segment(type="image", media=0)
    rows = [
        Sample(id="a", segments=[Segment(text="One two three, four five.")]),
        Sample(id="b", segments=[Segment(text="ONE two"), Segment(text="three four\u00a0five!")]),
        Sample(id="c", segments=[picture], media=[b"x"]),
        Sample(id="d", segments=[picture], media=[b"y"]),
        Sample(id="e", segments=[Segment(text="one")]),
        Sample(id="f", segments=[Segment(text="...")]),
        Sample(id="g", segments=[Segment(text="!")]),
    ]
    version = write_version(store, "datasets/x", rows)

    dropped = curate(store, version.name, [{"name": "minhash-dedup"}]).dropped

    assert [(row.sample_id, row.reason) for row in dropped] == [("b", "nearly repeats the text of a")]


def picture(seed: int) -> Image.Image:
    """A smooth random picture of random size."""
    rng = np.random.default_rng(seed)
    side = int(rng.integers(5, 20))
    seeds = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    return seeds.resize((int(rng.integers(90, 160)), int(rng.integers(90, 160))), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((round(0.02 * width), round(0.01 * height), width, round(0.98 * height)))


CHANGES: list[Callable[[Image.Image], bytes]] = [
    lambda image: encoded(image, "JPEG", quality=50),
    lambda image: encoded(image.resize((image.width * 2, image.height * 2)), "WEBP"),
    lambda image: encoded(image.resize((image.width // 2, image.height // 2)), "JPEG", quality=80),
    lambda image: encoded(cropped(image)),
    lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.15)),
    lambda image: encoded(ImageEnhance.Contrast(image).enhance(0.8)),
]


def image_row(identifier: str, *media: bytes) -> Sample:
    segments = [Segment(type="image", media=at) for at in range(len(media))]
    return Sample(id=identifier, segments=[*segments, Segment(text="t")], media=list(media))


def test_image_hash_dedup_finds_planted_copies_and_nothing_else(store: Store) -> None:
    originals = [picture(seed) for seed in range(150)]
    rows = [image_row(f"s{at}", encoded(image)) for at, image in enumerate(originals)]
    rows += [image_row(f"c{at}", CHANGES[at % 6](image)) for at, image in enumerate(originals[:120])]
    version = write_version(store, "datasets/x", rows)

    curated = curate(store, version.name, [{"name": "image-hash-dedup"}])

    found = {row.sample_id: row.reason for row in curated.dropped}
    precision, recall = precision_recall(set(found), {f"c{at}" for at in range(120)})
    assert (precision >= 0.95, recall >= 0.95) == (True, True), (precision, recall)
    assert all(reason == f"nearly repeats the images of s{name[1:]}" for name, reason in found.items())
    hashes = open_version(store, curated.version.name).table(["image_hashes"]).column(0).to_pylist()
    assert hashes[:1] == [[image_hash.image_hash(rows[0].media[0])]]


def test_a_sample_stays_if_one_of_its_images_is_new(store: Store) -> None:
    a, b, c = (encoded(picture(seed)) for seed in range(3))
    rows = [
        image_row("ab", a, b),
        image_row("ac", a, c),
        image_row("cb", c, b),
        image_row("none"),
        image_row("b", CHANGES[0](picture(1))),
    ]
    version = write_version(store, "datasets/x", rows)

    dropped = curate(store, version.name, [{"name": "image-hash-dedup"}]).dropped

    assert {row.sample_id: row.reason for row in dropped} == {
        "cb": "nearly repeats the images of ac",
        "b": "nearly repeats the images of ab",
    }


def test_hash_search_equals_comparing_all_pairs() -> None:
    rng = np.random.default_rng(5)
    base = rng.integers(0, 256, (40, 16), dtype=np.uint8)
    flips = np.stack([rng.permutation(128) < rng.integers(0, 34) for _ in range(200)])
    hashes = np.concatenate([base, base[rng.integers(0, 40, 200)] ^ np.packbits(flips, axis=1), base[:5]])
    bits = np.unpackbits(hashes, axis=1).astype(int)
    distance = (bits[:, None] != bits[None]).sum(axis=-1)
    for bound in (0, 7, 8, 14, 31):
        index = image_hash.HashIndex(hashes, bound)
        pairs, distances = index.near(hashes)
        first = (distance == 0).argmax(axis=1)
        expected = {(i, int(first[j])) for i, j in np.argwhere(distance <= bound).tolist()}
        assert set(map(tuple, pairs.tolist())) == expected
        assert (distance[tuple(pairs.T)] == distances).all()


def test_settings_out_of_range_are_refused(store: Store) -> None:
    version = write_version(store, "datasets/x", text_rows(["t"])).name
    for spec in ({"name": "minhash-dedup", "threshold": 0}, {"name": "minhash-dedup", "bands": 0}):
        with pytest.raises(InvalidArgumentError, match=r"curators\[0\]"):
            curate(store, version, [spec])
    with pytest.raises(InvalidArgumentError, match="max_distance=32 is outside 0 .. 31"):
        curate(store, version, [{"name": "image-hash-dedup", "max_distance": 32}])
    bad = write_version(store, "datasets/y", [image_row("a", b"text")])
    with pytest.raises(InvalidArgumentError, match=r"sample\[a\].image\[0\]: not a PNG"):
        curate(store, bad.name, [{"name": "image-hash-dedup"}])
