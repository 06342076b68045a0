"""Curators that compare vectors: the coreset of pairs, images dealt to sentences, image-text alignment."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rebus.data.curation import curate, judge_rows
from rebus.data.curators import bunny
from rebus.data.curators.mmc4 import assign
from rebus.data.dataset import DatasetReader, derive_version, open_version, write_version
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError
from rebus.store import Store

WIDE = {"text_window": (0.0, 1.0), "centroid_window": (0.0, 1.0)}


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def pair_version(store: Store, images: np.ndarray, texts: np.ndarray, ids: Sequence[str]) -> DatasetReader:
    """Captioned pictures whose vectors lie in two columns."""
    segments = [Segment(type="image", media=0), Segment(text="t")]
    samples = [Sample(id=identifier, segments=segments, media=[b"x"]) for identifier in ids]
    version = write_version(store, "datasets/x", samples)
    size = images.shape[1]
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size)
        for name, values in (("image_embeddings", images), ("text_embeddings", texts))
    }
    return open_version(store, derive_version(store, version.name, columns=columns).name)


def kept(reader: DatasetReader, **settings: Any) -> set[str]:
    dropped = {row.sample_id for row in judge_rows(reader, [{"name": "bunny", **settings}]).dropped}
    return set(reader.table(["id"]).column(0).to_pylist()) - dropped


@pytest.mark.paper("bunny")
def test_bunny_keeps_one_of_each_brute_force_component_of_a_cluster(store: Store) -> None:
    rng = np.random.default_rng(0)
    images = unit(rng, 30, 6).repeat(4, axis=0) + 0.12 * rng.standard_normal((120, 6)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    ids = [f"s{at:03}" for at in range(120)]
    reader = pair_version(store, images, unit(rng, 120, 6), ids)
    settings = {"threshold": 0.95, "clusters": 3, **WIDE}
    judged = judge_rows(reader, [{"name": "bunny", **settings}])
    cluster = np.array(judged.columns["cluster"].to_pylist())

    linked = (images @ images.T >= 0.95) & (cluster[:, None] == cluster)
    reach = linked.copy()
    for _ in range(120):
        reach |= (reach.astype(int) @ linked.astype(int)) > 0
    assert kept(reader, **settings) == {ids[at] for at in np.unique(reach.argmax(axis=1))}
    assert len(set(cluster.tolist())) == 3
    assert (linked.sum() > 120, len(judged.dropped) > 20) == (True, True)


@pytest.mark.paper("bunny")
def test_bunny_windows_hold_exactly_the_ranks_they_name(store: Store) -> None:
    rng = np.random.default_rng(1)
    images, texts = unit(rng, 200, 16), unit(rng, 200, 16)
    reader = pair_version(store, images, texts, [f"s{at:03}" for at in range(200)])
    settings = {"threshold": 1.0, "clusters": 4}

    judged = judge_rows(reader, [{"name": "bunny", **settings}])

    by_text = np.argsort(-(images * texts).sum(axis=1))[80:120]
    reasons = [row.reason for row in judged.dropped]
    assert reasons.count("the similarity of image and text ranks outside 40% to 60%") == 160
    assert reasons.count("the similarity of image and centre of its cluster ranks outside 15% to 35%") == 32
    _, nearness = bunny.clustered(images, 4, seed=0)
    by_centre = by_text[np.argsort(-nearness[by_text])[6:14]]
    assert kept(reader, **settings) == {f"s{at:03}" for at in by_centre}


@pytest.mark.paper("bunny")
def test_bunny_keeps_the_same_rows_in_any_order(store: Store) -> None:
    rng = np.random.default_rng(2)
    images, texts = unit(rng, 90, 8), unit(rng, 90, 8)
    ids = np.array([f"s{at}" for at in range(90)])
    shuffled = rng.permutation(90)
    settings = {"threshold": 0.8, "clusters": 3, "seed": 5, "text_window": (0.1, 0.9)}

    first = kept(pair_version(store, images, texts, ids.tolist()), **settings)
    again = kept(pair_version(store, images[shuffled], texts[shuffled], ids[shuffled].tolist()), **settings)

    assert first == again
    assert 5 < len(first) < 30


def brute_force(similarity: np.ndarray) -> float:
    """The greatest sum over all ways of dealing."""
    wide = similarity if similarity.shape[0] <= similarity.shape[1] else similarity.T
    rows = np.arange(len(wide))
    return max(float(wide[rows, list(chosen)].sum()) for chosen in permutations(range(wide.shape[1]), len(wide)))


@pytest.mark.paper("mmc4")
def test_assignment_equals_brute_force_and_beats_greed() -> None:
    rng = np.random.default_rng(3)
    for images in range(1, 8):
        for sentences in (1, 3, 7) if images > 4 else range(1, 8):
            similarity = rng.random((images, sentences)) + 0.2
            dealt = assign(similarity, 0.15)
            used = dealt[dealt >= 0]
            total = similarity[np.flatnonzero(dealt >= 0), used].sum()
            assert total == pytest.approx(brute_force(similarity))
            assert len(set(used.tolist())) == len(used) == min(images, sentences)
            assert total >= _greedy(similarity) - 1e-9
            order = rng.permutation(images)
            assert assign(similarity[order], 0.15).tolist() == dealt[order].tolist()


def _greedy(similarity: np.ndarray) -> float:
    left, total = similarity.copy(), 0.0
    for _ in range(min(left.shape)):
        row, column = np.unravel_index(left.argmax(), left.shape)
        total += left[row, column]
        left[row], left[:, column] = -np.inf, -np.inf
    return total


@pytest.mark.paper("mmc4")
def test_an_image_that_matches_nothing_takes_no_sentence_from_others() -> None:
    similarity = np.array([[0.14, 0.1], [0.16, 0.15], [0.5, 0.2]])
    assert assign(similarity, 0.15).tolist() == [-1, 1, 0]
    assert assign(np.zeros((2, 0)), 0.15).tolist() == [-1, -1]


def document(identifier: str, layout: str) -> Sample:
    """``i`` an image, ``t`` a text."""
    numbers = iter(range(len(layout)))
    segments = [
        Segment(type="image", media=next(numbers)) if kind == "i" else Segment(text=f"sentence {at}")
        for at, kind in enumerate(layout)
    ]
    return Sample(id=identifier, segments=segments, media=[bytes([at]) * 1000 for at in range(layout.count("i"))])


def test_mmc4_moves_images_and_rewrites_no_media(store: Store) -> None:
    rows = [document("moved", "iitttit"), document("lost", "it"), document("plain", "tt"), document("wordless", "i")]
    axes = np.eye(4, dtype=np.float32)
    images = [axes[[2, 1, 3]], -axes[:1], axes[:0], axes[:1]]
    texts = [axes[[0, 1, 2, 0]], axes[:1], axes[:2], axes[:0]]
    vectors = pa.list_(pa.list_(pa.float32()))
    columns = {
        "image_embeddings": pa.array([value.tolist() for value in images], vectors),
        "text_embeddings": pa.array([value.tolist() for value in texts], vectors),
    }
    parent = derive_version(store, write_version(store, "datasets/x", rows).name, columns=columns)

    curated = curate(store, parent.name, [{"name": "mmc4"}])

    reader = open_version(store, curated.version.name)
    moved, plain = reader.scan()
    shown = [segment.media if segment.type == "image" else segment.text for segment in moved.segments]
    assert shown == ["sentence 2", 1, "sentence 3", 0, "sentence 4", "sentence 6"]
    assert (list(moved.media), plain) == (rows[0].media, rows[2])
    table = reader.table(["num_segments", "sentence_similarities"]).to_pydict()
    assert table == {"num_segments": [6, 2], "sentence_similarities": [[1.0, 1.0, None], None]}
    assert [(row.sample_id, row.reason) for row in curated.dropped] == [
        ("lost", "no image matches a sentence by 0.15"),
        ("wordless", "no image matches a sentence by 0.15"),
    ]
    assert next(open_version(store, parent.name).scan()) == rows[0]  # the parent is as it was


def test_alignment_is_the_mean_over_images_of_the_nearest_text(store: Store) -> None:
    rng = np.random.default_rng(4)
    images, texts = unit(rng, 20, 3), unit(rng, 20, 3)
    reader = pair_version(store, 7 * images, texts, [f"s{at}" for at in range(20)])

    judged = judge_rows(reader, [{"name": "image-text-alignment", "min_similarity": 0.1}])

    expected = (images * texts).sum(axis=1)
    np.testing.assert_allclose(judged.columns["image_text_similarity"].to_numpy(), expected, rtol=1e-5)
    assert {row.row for row in judged.dropped} == set(np.flatnonzero(expected < 0.1).tolist())


def test_missing_and_unfit_columns_are_refused(store: Store) -> None:
    reader = pair_version(store, np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), ["a", "b", "c"])
    name = reader.version.name
    with pytest.raises(InvalidArgumentError, match=r"curators\[0\]: reads column 'nothing', which datasets/x"):
        curate(store, name, [{"name": "bunny", "image_column": "nothing"}])
    with pytest.raises(InvalidArgumentError, match="num_chars: expected vectors of floats or lists"):
        curate(store, name, [{"name": "image-text-alignment", "text_column": "num_chars"}])
