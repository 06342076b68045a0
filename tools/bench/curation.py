"""Curating a synthetic version of many rows, and MinHash-LSH against ``datasketch``, in one run.

``python -m tools.bench.curation --rows 1000000`` prints rows a second, the peak memory of the process and the bytes
that the chain ``minhash-dedup``, ``text-length`` adds to a version whose rows hold text and media; then rows a second
of both MinHash paths on the same texts with the same bands; then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from rebus.data import minhash
from rebus.data.curation import curate
from rebus.data.dataset import write_version
from rebus.data.sample import Sample, Segment
from rebus.data.shingles import ngram_hashes
from rebus.store import Store

WORDS, MEDIA_BYTES, REPEATED_SHARE = 50, 256, 0.1
THRESHOLD, NGRAM = 0.6, 3
VOCABULARY = np.array([f"word{at}" for at in range(20_000)])


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peer-rows", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    result = {**_curation(options.rows), **_peers(options.peer_rows, options.repeats)}
    for name, value in result.items():
        print(f"{name:<32} {value:>16,.2f}")
    print(json.dumps({"bench": "curation", "rows": options.rows, **result}))


def _texts(rows: int) -> Iterator[str]:
    """Random words; one text in ten is an earlier one with a word changed."""
    rng = np.random.default_rng(0)
    words = VOCABULARY[rng.integers(0, len(VOCABULARY), WORDS)]
    for _ in range(rows):
        if rng.random() < REPEATED_SHARE:
            words = words.copy()
            words[rng.integers(WORDS)] = "changed"
        else:
            words = VOCABULARY[rng.integers(0, len(VOCABULARY), WORDS)]
        yield " ".join(words)


def _curation(rows: int) -> dict[str, float]:
    media = bytes(MEDIA_BYTES)
    segments = Segment(type="image", media=0)
    samples = (
        Sample(id=f"s{at}", segments=[segments, Segment(text=text)], media=[media])
        for at, text in enumerate(_texts(rows))
    )
    with tempfile.TemporaryDirectory(prefix="rebus-bench-") as folder:
        store = Store.open(Path(folder).as_uri())
        version = write_version(store, "datasets/x", samples).name
        before, peak = _stored(store), _peak_mib()
        start = time.perf_counter()
        curated = curate(store, version, [{"name": "minhash-dedup"}, {"name": "text-length", "min_chars": 8}])
        seconds = time.perf_counter() - start
        return {
            "curated rows/s": rows / seconds,
            "dropped rows": len(curated.dropped),
            "bytes written": _stored(store) - before,
            "media bytes of the version": rows * MEDIA_BYTES,
            "peak MiB before curation": peak,
            "peak MiB": _peak_mib(),
        }


def _stored(store: Store) -> int:
    return sum(info.size for info in store.list("datasets/x"))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _peers(rows: int, repeats: int) -> dict[str, float]:
    """Rows a second of finding near pairs; the paths take turns, and each one's best turn counts."""
    texts = list(_texts(rows))
    paths: dict[str, Callable[[list[str]], Any]] = {"rebus": _ours, "datasketch": _datasketch}
    best = {name: max(rows / _seconds(path, texts) for _ in range(repeats)) for name, path in paths.items()}
    ratio = best["rebus"] / best["datasketch"]
    return {**{f"minhash rows/s, {name}": rate for name, rate in best.items()}, "x datasketch": ratio}


def _seconds(path: Callable[[list[str]], Any], texts: list[str]) -> float:
    start = time.perf_counter()
    path(texts)
    return time.perf_counter() - start


def _ours(texts: list[str]) -> int:
    bands = minhash.Bands()
    blocks = [texts[start : start + 4096] for start in range(0, len(texts), 4096)]
    sketches = [minhash.sketch(*ngram_hashes(pa.array(block), NGRAM), bands) for block in blocks]
    return len(minhash.similar_pairs(np.concatenate(sketches), bands, THRESHOLD))


def _datasketch(texts: list[str]) -> int:
    bands = minhash.Bands()
    index = MinHashLSH(num_perm=bands.places, params=(bands.bands, bands.rows))
    pairs = 0
    for at, text in enumerate(texts):
        words = text.split()
        sketch = MinHash(num_perm=bands.places)
        sketch.update_batch([" ".join(words[start : start + NGRAM]).encode() for start in range(WORDS - NGRAM + 1)])
        pairs += len(index.query(sketch))
        index.insert(at, sketch)
    return pairs


if __name__ == "__main__":
    main()
