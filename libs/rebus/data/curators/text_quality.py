"""How much a text is like good ones rather than bad ones, as a small model learned it from examples of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

from rebus.data.columns import joined_texts
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.dataset import open_version
from rebus.data.shingles import ngram_hashes
from rebus.errors import invalid
from rebus.registry import register
from rebus.store import Store

QUALITY = "text_quality"
_BATCH_ROWS = 1024
_ITERATIONS = 200

Weights = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TextQualityConfig:
    """Which texts are good and which are bad, and from which score on a text stays."""

    # Dataset versions: ``datasets/x/versions/1``.
    good: str
    bad: str
    # Probability of being good.
    min_score: float = 0.5
    # Rows read of each, the first ones.
    max_examples: int = 10_000
    # Single words up to n-grams of as many count; their hashes share 2^bits weights.
    ngram: int = 2
    bits: int = 18
    # Weight of the squared norm of the weights, against the mean loss of an example.
    l2: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1 or self.max_examples < 1 or self.l2 <= 0:
            raise ValueError("min_score must be 0 to 1, max_examples at least 1 and l2 positive")
        if not (1 <= self.ngram <= 5 and 8 <= self.bits <= 24):
            raise ValueError("ngram must be 1 to 5 and bits 8 to 24")


@register("curator", "text-quality", config=TextQualityConfig, paper="yi")
class TextQuality(Curator):
    """Adds ``text_quality``, the probability that a text is a good one, and drops texts below a score."""

    reads = ("segments",)
    adds: Mapping[str, pa.DataType] = {QUALITY: pa.float32()}

    def __init__(self, config: TextQualityConfig) -> None:
        self._config = config
        self._weights: Weights = np.zeros(0)

    def prepare(self, store: Store) -> None:
        """Learns; ``InvalidArgumentError`` if one of the versions holds no text."""
        config = self._config
        good, bad = (
            _examples(store, name, field, config) for field, name in (("good", config.good), ("bad", config.bad))
        )
        texts = pa.concat_arrays([good, bad])
        labels = np.repeat([1.0, 0.0], [len(good), len(bad)])
        # Each side counts as much as the other, whatever its number of examples.
        shares = np.repeat([0.5 / len(good), 0.5 / len(bad)], [len(good), len(bad)])
        self._weights = fitted(features(texts, config.ngram, config.bits), labels, shares, config.l2)

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """A row without text stays, and has a null."""
        texts = joined_texts(observed)
        found = features(texts, self._config.ngram, self._config.bits)
        scores = expit(found @ self._weights)
        empty = np.diff(found.indptr) <= 1  # nothing but the constant
        reasons = [
            KEEP
            if nothing or score >= self._config.min_score
            else f"its quality is {score:.2f}, below {self._config.min_score:g}"
            for score, nothing in zip(scores.tolist(), empty.tolist(), strict=True)
        ]
        return Judgement(reasons, {QUALITY: pa.array(scores, pa.float32(), mask=empty)})


def features(texts: pa.Array, ngram: int, bits: int) -> csr_array:
    """``[N, 2^bits + 1]``: which n-grams a text has, in a row of length 1, and a constant."""
    parts = [ngram_hashes(texts, n) for n in range(1, ngram + 1)]
    rows = np.concatenate([np.repeat(np.arange(len(texts)), np.diff(offsets)) for _, offsets in parts])
    columns = np.concatenate([hashes >> np.uint64(64 - bits) for hashes, _ in parts]).astype(np.int64)
    cells = np.unique(rows * (1 << bits) + columns)
    rows, columns = cells >> bits, cells & ((1 << bits) - 1)
    counts = np.bincount(rows, minlength=len(texts))
    values = 1 / np.sqrt(counts[rows])
    every = np.arange(len(texts))
    return csr_array(
        (
            np.concatenate([values, np.ones(len(texts))]),
            (np.concatenate([rows, every]), np.concatenate([columns, np.full(len(texts), 1 << bits)])),
        ),
        shape=(len(texts), (1 << bits) + 1),
    )


def objective(weights: Weights, x: csr_array, labels: Weights, shares: Weights, l2: float) -> tuple[float, Weights]:
    """Regularised logistic loss and its gradient; the last weight is the constant's, and is not regularised."""
    scores = x @ weights
    penalised = np.append(weights[:-1], 0.0)
    loss = shares @ (np.logaddexp(0, scores) - labels * scores) + l2 / 2 * penalised @ penalised
    return float(loss), x.T @ (shares * (expit(scores) - labels)) + l2 * penalised


def fitted(x: csr_array, labels: Weights, shares: Weights, l2: float) -> Weights:
    """The weights of least loss. The problem is convex: they depend on nothing but the examples."""
    start = np.zeros_like(x.T @ shares)
    options = {"maxiter": _ITERATIONS, "gtol": 1e-6}
    return minimize(objective, start, (x, labels, shares, l2), "L-BFGS-B", jac=True, options=options).x


def _examples(store: Store, version: str, field: str, config: TextQualityConfig) -> pa.Array:
    found: list[pa.Array] = [pa.array([], pa.string())]
    left = config.max_examples
    for batch in open_version(store, version).scan_columns(["segments"], batch_rows=_BATCH_ROWS):
        texts = joined_texts(batch.slice(0, left))
        left -= len(texts)
        found.append(texts.filter(pa.array([bool(text) for text in texts.to_pylist()], pa.bool_())))
        if left <= 0:
            break
    examples = pa.concat_arrays(found)
    if not len(examples):
        raise invalid(f"text-quality.{field}", f"{version} has no text in its first {config.max_examples} rows")
    return examples
