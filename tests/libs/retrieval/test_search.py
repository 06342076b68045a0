"""Search: flat against brute force, the graph against flat, refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from rebus.errors import InvalidArgumentError
from rebus.retrieval.search import SearchIndex, build_index


def unit_vectors(count: int, dimension: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build(spec: dict[str, object], vectors: NDArray[np.float32]) -> SearchIndex:
    rows = np.arange(len(vectors)) * 3 + 1
    return build_index(spec, vectors, rows, [f"sample-{row}" for row in rows])


@pytest.fixture(params=[1, 64], ids=["one-query", "batch"])
def queries(request: pytest.FixtureRequest) -> NDArray[np.float32]:
    """FAISS takes another path for a batch than for single queries."""
    return unit_vectors(request.param, 24, seed=1)


def test_flat_equals_brute_force(queries: NDArray[np.float32]) -> None:
    vectors = unit_vectors(500, 24, seed=0)
    index = build({"name": "flat"}, vectors)
    similarities = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    order = np.argsort(-similarities, axis=1)[:, :10]

    for hits, best, scores in zip(index.search(queries, 10), order, similarities, strict=True):
        assert [hit.row for hit in hits] == (best * 3 + 1).tolist()
        assert [hit.sample_id for hit in hits] == [f"sample-{at * 3 + 1}" for at in best]
        assert [hit.score for hit in hits] == pytest.approx(scores[best], abs=1e-5)


def test_the_graph_finds_almost_what_exact_search_finds() -> None:
    vectors, queries = unit_vectors(2000, 32, seed=2), unit_vectors(100, 32, seed=3)
    _, exact = build({"name": "flat"}, vectors).search_arrays(queries, 10)
    _, found = build({"name": "hnsw"}, vectors).search_arrays(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    assert recall >= 0.95


def test_settings_reach_the_graph() -> None:
    spec = {"name": "hnsw", "num_links": 8, "build_width": 20, "search_width": 77}
    index = build(spec, unit_vectors(50, 8, seed=0)).faiss_index  # the graph lives as long as its index
    graph = index.hnsw
    assert (graph.nb_neighbors(0), graph.nb_neighbors(1)) == (16, 8)
    assert (graph.efConstruction, graph.efSearch) == (20, 77)


@pytest.mark.parametrize("name", ["flat", "hnsw"])
def test_the_same_vectors_give_the_same_bytes(name: str) -> None:
    vectors = unit_vectors(300, 16, seed=0)
    first, second = (faiss.serialize_index(build({"name": name}, vectors).faiss_index) for _ in range(2))
    assert np.array_equal(first, second)


def test_threads_get_what_one_caller_gets() -> None:
    vectors, queries = unit_vectors(800, 16, seed=0), unit_vectors(40, 16, seed=1)
    index = build({"name": "hnsw"}, vectors)
    alone = index.search(queries, 5)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda at: index.search(queries[at : at + 1], 5)[0], range(40)))
    assert [[hit.row for hit in hits] for hits in together] == [[hit.row for hit in hits] for hits in alone]


def test_fewer_vectors_than_asked_for_and_scores_within_bounds() -> None:
    vectors = unit_vectors(3, 8, seed=0)
    hits = build({"name": "flat"}, vectors).search(vectors * np.float32(1 + 1e-6), 10)
    assert [len(row) for row in hits] == [3, 3, 3]
    assert all(-1.0 <= hit.score <= 1.0 for row in hits for hit in row)


@pytest.mark.parametrize(
    ("queries", "k", "field"),
    [
        (np.zeros((1, 7), np.float32), 5, "query"),
        (np.zeros(8, np.float32), 5, "query"),
        (np.full((1, 8), np.nan, np.float32), 5, "query"),
        (np.zeros((1, 8), np.float32), 0, "top_k"),
        (np.zeros((1, 8), np.float32), 1001, "top_k"),
    ],
)
def test_bad_queries_name_their_field(queries: NDArray[np.float32], k: int, field: str) -> None:
    index = build({"name": "flat"}, unit_vectors(4, 8, seed=0))
    with pytest.raises(InvalidArgumentError) as caught:
        index.search(queries, k)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_no_vectors_and_unknown_settings_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="at least one vector"):
        build({"name": "flat"}, np.zeros((0, 8), np.float32))
    with pytest.raises(InvalidArgumentError, match="did you mean 'num_links'"):
        build({"name": "hnsw", "num_link": 3}, unit_vectors(4, 8, seed=0))


def test_a_search_lets_faiss_use_blas_for_batches_but_not_for_single_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS compares its threshold with queries times dimensions."""
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 128_000)
    build({"name": "flat"}, unit_vectors(4, 8, seed=0)).search(unit_vectors(1, 8, seed=1), 2)
    assert 1 * 8 < faiss.cvar.distance_compute_blas_threshold <= 8 * 8
