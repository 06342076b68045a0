"""Search through ``rebus.retrieval`` against FAISS as installed and FAISS tuned, in one run.

``python -m tools.bench.retrieval`` prints milliseconds a batch (median) and how many times as long each peer takes,
then one line of JSON. Our path checks its input and returns rows and sample ids where FAISS alone returns arrays: a
ratio near 1 to the tuned index says that these cost little, the ratio to FAISS as installed what the tuning is worth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from rebus.retrieval.search import BLAS_QUERIES, SEARCH_THREADS, SearchIndex, build_index

# Nothing has searched yet, so this is still FAISS's own.
INSTALLED_THRESHOLD: int = faiss.cvar.distance_compute_blas_threshold
TOP_K = 10
BATCHES = (1, 8, 64)
OURS, TUNED, INSTALLED = "rebus", "faiss tuned", "faiss as installed"


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    vectors = _unit(rng, options.vectors, options.dimension)
    rows = np.arange(len(vectors))
    results: list[dict[str, Any]] = []
    print(f"{len(vectors)} vectors of {options.dimension} dimensions, top {TOP_K}, {SEARCH_THREADS} thread, ms a batch")
    print(f"{'index':<6} {'batch':>5} {OURS:>10} {TUNED:>12} {INSTALLED:>19} {'x tuned':>8} {'x installed':>12}")
    for algorithm in ("flat", "hnsw"):
        index = build_index({"name": algorithm}, vectors, rows, [f"sample-{row}" for row in rows])
        for batch in BATCHES:
            times = _compare(index, _unit(rng, batch, options.dimension), options.repeats)
            tuned, installed = (times[peer] / times[OURS] for peer in (TUNED, INSTALLED))
            print(
                f"{algorithm:<6} {batch:>5} {times[OURS]:>10.3f} {times[TUNED]:>12.3f} {times[INSTALLED]:>19.3f} "
                f"{tuned:>8.2f} {installed:>12.2f}"
            )
            results.append({"index": algorithm, "batch": batch, "ms": times})
    print(json.dumps({"bench": "retrieval", "faiss": faiss.__version__, "results": results}))


def _unit(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _compare(index: SearchIndex, queries: np.ndarray, repeats: int) -> dict[str, float]:
    """Median milliseconds of each path; the paths take turns, so that a busy moment of the machine meets all alike."""

    def plain() -> None:
        index.faiss_index.search(queries, TOP_K)

    tuned = BLAS_QUERIES * index.dimension
    paths: dict[str, tuple[int, Callable[[], object]]] = {
        OURS: (tuned, lambda: index.search(queries, TOP_K)),
        TUNED: (tuned, plain),
        INSTALLED: (INSTALLED_THRESHOLD, plain),
    }
    faiss.omp_set_num_threads(SEARCH_THREADS)
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats + 1):
        for name, (threshold, search) in paths.items():
            faiss.cvar.distance_compute_blas_threshold = threshold
            start = time.perf_counter()
            search()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # the first call warms up


if __name__ == "__main__":
    main()
