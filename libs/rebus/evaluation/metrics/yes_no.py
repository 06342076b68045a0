"""Yes/no benchmarks: MME (arXiv 2306.13394) and POPE (arXiv 2305.10355), each with its own rule for reading an answer.

MME asks two questions an image, one with the answer yes and one with no. ``acc`` is the share of questions answered
right, ``acc+`` the share of images with both right; a subtask scores ``100 * (acc + acc+)``, 200 at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rebus.errors import invalid
from rebus.registry import NoSettings, register

_MME_PREFIX = 4


def parse_mme(text: str) -> Literal["yes", "no", "other"]:
    """MME's reading: lower case, full stops cut off; ``yes`` or ``no``, else what the first 4 characters hold."""
    answer = text.strip().lower().strip(".").strip()
    if answer in ("yes", "no"):
        return "yes" if answer == "yes" else "no"
    prefix = answer[:_MME_PREFIX]
    return "yes" if "yes" in prefix else ("no" if "no" in prefix else "other")


@register("metric", "mme_accuracy", paper="mme")
def mme_accuracy(config: NoSettings, predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """MME's acc: 1 where the answer, read by ``parse_mme``, equals the reference ``yes`` or ``no``; ``[questions]``."""
    _check_references(references)
    hits = [parse_mme(p) == r for p, r in zip(predictions, references, strict=True)]
    return np.array(hits, dtype=np.float64)


@register("metric", "mme_accuracy_plus", paper="mme")
def mme_accuracy_plus(
    config: NoSettings, predictions: Sequence[str], references: Sequence[str], images: Sequence[str]
) -> NDArray[np.float64]:
    """MME's acc+: 1 for an image whose questions are all right, else 0; ``[images]``, in order of first appearance."""
    right: dict[str, bool] = {}
    for image, hit in zip(images, mme_accuracy(config, predictions, references), strict=True):
        right[image] = right.get(image, True) and bool(hit)
    return np.array(list(right.values()), dtype=np.float64)


def parse_pope(text: str) -> Literal["yes", "no"]:
    """POPE's reading: the first sentence without commas; ``no`` if it holds the word no or not, else ``yes``."""
    words = text.split(".", 1)[0].replace(",", "").split()
    return "no" if any(word in ("No", "not", "no") for word in words) else "yes"


@register("metric", "pope_accuracy")
def pope_accuracy(config: NoSettings, predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """1 where the answer, read by ``parse_pope``, equals the reference ``yes`` or ``no``; ``[questions]``."""
    _check_references(references)
    hits = [parse_pope(p) == r for p, r in zip(predictions, references, strict=True)]
    return np.array(hits, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class YesNoReport:
    """POPE's figures; ``yes`` is the positive class. A ratio with an empty denominator is 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    # Share of yes among the predictions (not among the references, as a popular harness has it).
    yes_ratio: float


def pope_report(predictions: Sequence[str], references: Sequence[str]) -> YesNoReport:
    """Accuracy, precision, recall, F1 and yes-ratio of yes/no answers read by ``parse_pope``."""
    _check_references(references)
    said = np.array([parse_pope(p) == "yes" for p in predictions], dtype=bool)
    true = np.array([r == "yes" for r in references], dtype=bool)
    hits = float(np.sum(said & true))
    precision, recall = _ratio(hits, float(said.sum())), _ratio(hits, float(true.sum()))
    return YesNoReport(
        accuracy=_ratio(float(np.sum(said == true)), len(true)),
        precision=precision,
        recall=recall,
        f1=_ratio(2 * precision * recall, precision + recall),
        yes_ratio=_ratio(float(said.sum()), len(said)),
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _check_references(references: Sequence[str]) -> None:
    bad = next((r for r in references if r not in ("yes", "no")), None)
    if bad is not None:
        raise invalid("references", f"must be yes or no, found {bad!r}")
