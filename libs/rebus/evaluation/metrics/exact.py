"""Exact match under a stated normalisation."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rebus.registry import NoSettings, register

_ENDS = " .,!?;:\"'"


def normalise(text: str) -> str:
    """Unicode NFKC, case-folded, runs of white space made one space, punctuation and spaces cut off at both ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(_ENDS)


@register("metric", "exact_match")
def exact_match(
    config: NoSettings, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """1 where the answer equals one of its references after ``normalise``, else 0; ``[N]``."""
    pairs = zip(predictions, references, strict=True)
    hits = [normalise(prediction) in {normalise(r) for r in accepted} for prediction, accepted in pairs]
    return np.array(hits, dtype=np.float64)
