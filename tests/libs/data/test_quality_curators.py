"""The cascade of filters: heuristics counted by hand, a scorer at the optimum of its loss, topics by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad

from rebus.data.curation import judge_rows
from rebus.data.curators import text_quality
from rebus.data.curators.text_heuristics import repeated_ngrams, symbol_ratios
from rebus.data.dataset import DatasetReader, derive_version, open_version, write_version
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError
from rebus.store import Store

GOOD = ["river", "stone", "garden", "window", "letter", "summer", "candle", "winter", "bridge", "forest"]
BAD = ["click", "free", "winner", "cheap", "offer", "casino", "bonus", "credit", "prize", "deal"]


def _text(rng: np.random.Generator, own: list[str], other: list[str]) -> str:
    """Twelve words, an eighth of them of the other kind."""
    words = [str(rng.choice(other if rng.random() < 0.125 else own)) for _ in range(12)]
    return " ".join(words)


def _version(store: Store, name: str, texts: list[str]) -> DatasetReader:
    samples = [Sample(id=f"s{at:04}", segments=[Segment(text=text)]) for at, text in enumerate(texts)]
    return open_version(store, write_version(store, f"datasets/{name}", samples).name)


def _reasons(reader: DatasetReader, *chain: dict[str, Any]) -> dict[str, str]:
    return {row.sample_id: row.reason for row in judge_rows(reader, chain).dropped}


@pytest.mark.paper("yi")
def test_heuristics_judge_what_can_be_counted_by_hand(store: Store) -> None:
    texts = [
        "The old bridge leads over a slow river into town.",
        "!!! >>> $$$ buy <<< !!!",
        "one two three four five one two three four five one two three four five",
        "a b c d e f g h",
        "extraordinarily incomprehensibilities characterization internationalization responsibilities",
        "ok",
    ]
    found = _reasons(_version(store, "x", texts), {"name": "text-heuristics"})
    assert {key: reason.split(",")[0] for key, reason in found.items()} == {
        "s0001": "65% of its characters are symbols",  # 15 of 23
        "s0002": "55% of its 5-grams are repeats",  # 11 of them, 5 of which are new
        "s0003": "its words have 1.0 characters on average",
        "s0004": "its words have 17.6 characters on average",
    }


@given(st.lists(st.text("ab .,é1", max_size=40), max_size=5), st.integers(1, 4))
def test_shares_equal_counting(texts: list[str], n: int) -> None:
    column = pa.array(texts, pa.string())
    for text, ratio, repeated in zip(texts, symbol_ratios(column), repeated_ngrams(column, n), strict=True):
        symbols = sum(not (c.isalnum() or c.isspace()) for c in text)
        assert np.isnan(ratio) if not text else ratio == pytest.approx(symbols / len(text))
        words = text.replace(".", " ").replace(",", " ").split()
        grams = [tuple(words[at : at + n]) for at in range(max(len(words) - n + 1, 1))] if words else []
        assert repeated == pytest.approx((len(grams) - len(set(grams))) / max(len(grams), 1))


@pytest.mark.paper("yi")
def test_a_learned_scorer_tells_new_texts_apart_at_the_optimum_of_its_loss(store: Store) -> None:
    rng = np.random.default_rng(0)
    good, bad = ([_text(rng, own, other) for _ in range(200)] for own, other in ((GOOD, BAD), (BAD, GOOD)))
    names = {key: _version(store, key, texts[:100]).version.name for key, texts in (("good", good), ("bad", bad))}
    reader = _version(store, "new", [*good[100:], *bad[100:], "&&&"])
    judged = judge_rows(reader, [{"name": "text-quality", **names}])
    scores = judged.columns["text_quality"].to_pylist()
    assert scores[-1] is None
    right = sum(score >= 0.5 for score in scores[:100]) + sum(score < 0.5 for score in scores[100:200])
    assert right >= 195
    assert {row.row for row in judged.dropped} == {at for at, score in enumerate(scores[:-1]) if score < 0.5}

    x = text_quality.features(pa.array([*good[:5], *bad[:5]]), 1, 8)
    labels, shares = np.repeat([1.0, 0.0], 5), np.full(10, 0.1)
    found = text_quality.fitted(x, labels, shares, 1e-3)
    assert np.abs(text_quality.objective(found, x, labels, shares, 1e-3)[1]).max() < 1e-5
    wrong = check_grad(
        lambda w: text_quality.objective(w, x, labels, shares, 1e-3)[0],
        lambda w: text_quality.objective(w, x, labels, shares, 1e-3)[1],
        rng.standard_normal(x.shape[1]),
    )
    assert wrong < 1e-6


def test_examples_without_text_are_named(store: Store) -> None:
    picture = [Sample(id="p", segments=[Segment(type="image", media=0)], media=[b"x"])]
    empty = write_version(store, "datasets/empty", picture).name
    reader = _version(store, "x", ["some text"])
    with pytest.raises(InvalidArgumentError, match=r"text-quality.bad: .* has no text"):
        judge_rows(reader, [{"name": "text-quality", "good": reader.version.name, "bad": empty}])


@pytest.mark.paper("yi")
def test_topics_of_a_low_mean_score_go(store: Store) -> None:
    rng = np.random.default_rng(1)
    centres = np.eye(4, 8, dtype=np.float32)
    topics = rng.integers(0, 4, 200)
    texts = centres[topics] + 0.05 * rng.standard_normal((200, 8)).astype(np.float32)
    scores = np.where(topics % 2, 0.8, 0.3) + rng.uniform(-0.25, 0.25, 200)
    ids = rng.permutation(200)
    samples = [Sample(id=f"s{number:03}", segments=[Segment(text="t")]) for number in ids]
    columns = {
        "text_embeddings": pa.FixedSizeListArray.from_arrays(pa.array(texts.reshape(-1)), 8),
        "text_quality": pa.array(scores.astype(np.float32)),
    }
    version = write_version(store, "datasets/x", samples)
    reader = open_version(store, derive_version(store, version.name, columns=columns).name)
    judged = judge_rows(reader, [{"name": "quality-clusters", "clusters": 4}])
    assert {row.row for row in judged.dropped} == set(np.flatnonzero(topics % 2 == 0).tolist())
    found = np.array(judged.columns["text_cluster"].to_pylist())
    assert all(len(set(found[topics == topic])) == 1 for topic in range(4))


def test_clusters_do_not_depend_on_the_order_of_rows(store: Store) -> None:
    rng = np.random.default_rng(2)
    texts = rng.standard_normal((120, 4)).astype(np.float32)  # no topics: where k-means starts decides
    by_order = []
    for name, order in (("x", np.arange(120)), ("y", rng.permutation(120))):
        samples = [Sample(id=f"s{number:03}", segments=[Segment(text="t")]) for number in order]
        columns = {
            "text_embeddings": pa.FixedSizeListArray.from_arrays(pa.array(texts[order].reshape(-1)), 4),
            "text_quality": pa.array(np.ones(120, np.float32)),
        }
        version = write_version(store, f"datasets/{name}", samples)
        reader = open_version(store, derive_version(store, version.name, columns=columns).name)
        found = judge_rows(reader, [{"name": "quality-clusters", "clusters": 7}]).columns["text_cluster"].to_pylist()
        by_order.append(dict(zip(order.tolist(), found, strict=True)))
    assert by_order[0] == by_order[1]
