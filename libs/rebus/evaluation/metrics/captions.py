"""CIDEr-D (Vedantam et al., arXiv 1411.5726, as released with the COCO caption server)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.registry import register

Ngram = tuple[str, ...]
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


@dataclass(frozen=True, kw_only=True)
class CiderDConfig:
    """The published constants."""

    # N-grams of 1 to this many words, all weighted alike.
    max_ngram: int = 4
    # Width of the Gaussian penalty on the difference of the bigram counts.
    sigma: float = 6.0

    def __post_init__(self) -> None:
        if self.max_ngram < 1 or self.sigma <= 0:
            raise ValueError(f"max_ngram={self.max_ngram} must be at least 1 and sigma={self.sigma} above 0")


@register("metric", "cider_d", config=CiderDConfig)
def cider_d(
    config: CiderDConfig, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """CIDEr-D of each caption against its references, 0 to 10; ``[N]``.

    Inverse document frequencies come from the evaluated references (a document is one image with all its references),
    so a set of one image scores 0. Words are lower-cased runs of letters and digits.
    """
    if not predictions:
        return np.zeros(0)
    counted = [[_ngrams(text, config.max_ngram) for text in texts] for texts in references]
    frequency = Counter(ngram for documents in counted for ngram in set().union(*documents))
    weigh = _Weigher(frequency, num_documents=len(references), max_ngram=config.max_ngram)
    scores = []
    for prediction, documents in zip(predictions, counted, strict=True):
        caption = weigh(_ngrams(prediction, config.max_ngram))
        similarities = [_similarity(caption, weigh(document), config.sigma) for document in documents]
        scores.append(10.0 * _mean(similarities))
    return np.array(scores, dtype=np.float64)


def caption_words(text: str) -> list[str]:
    """Lower-cased words; punctuation is dropped."""
    return _WORD.findall(text.lower())


def _ngrams(text: str, max_ngram: int) -> Counter[Ngram]:
    words = caption_words(text)
    return Counter(
        tuple(words[start : start + n]) for n in range(1, max_ngram + 1) for start in range(len(words) - n + 1)
    )


@dataclass(frozen=True)
class _Vector:
    """Term-frequency times inverse-document-frequency weights, one table and one norm a length of n-gram."""

    tables: Sequence[dict[Ngram, float]]
    norms: Sequence[float]
    num_bigrams: int


class _Weigher:
    """Weighs n-gram counts by ``count * (log(documents) - log(max(1, documents that hold it)))``."""

    def __init__(self, frequency: Counter[Ngram], *, num_documents: int, max_ngram: int) -> None:
        self._frequency = frequency
        self._log_documents = math.log(num_documents)
        self._max_ngram = max_ngram

    def __call__(self, counts: Counter[Ngram]) -> _Vector:
        tables: list[dict[Ngram, float]] = [{} for _ in range(self._max_ngram)]
        for ngram, count in counts.items():
            rarity = self._log_documents - math.log(max(1, self._frequency[ngram]))
            tables[len(ngram) - 1][ngram] = count * rarity
        norms = [math.sqrt(sum(weight**2 for weight in table.values())) for table in tables]
        return _Vector(tables, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2))


def _similarity(caption: _Vector, reference: _Vector, sigma: float) -> float:
    """Mean over n of the cosine with the caption's weights clipped at the reference's, times the length penalty."""
    gap = caption.num_bigrams - reference.num_bigrams
    penalty = math.exp(-(gap**2) / (2 * sigma**2))
    cosines = []
    for table, other, norm, other_norm in zip(
        caption.tables, reference.tables, caption.norms, reference.norms, strict=True
    ):
        shared = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in table.items() if ngram in other)
        cosines.append(shared / (norm * other_norm) if norm and other_norm else 0.0)
    return penalty * _mean(cosines)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
