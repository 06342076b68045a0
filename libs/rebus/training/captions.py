"""Images and what is said of them: the pairs that contrastive tasks learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rebus.data.loader import load_samples
from rebus.data.sample import Sample
from rebus.errors import invalid
from rebus.training.recipe import DataBinding
from rebus.training.task import SampleSource, TaskContext

_REPORT_ROWS = 256
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CaptionedRows:
    """The rows of a source that have an image and a caption that may be drawn."""

    # Among the source's rows.
    indices: NDArray[np.int64]
    # Of each row, its captions and the odds with which each is drawn.
    captions: Sequence[Sequence[str]]
    odds: Sequence[NDArray[np.float64]]
    families: Sequence[str]

    def __len__(self) -> int:
        return len(self.indices)


def captioned_rows(
    name: str, source: SampleSource, context: TaskContext, language_weights: Mapping[str, float]
) -> CaptionedRows:
    """Reads all of the data binding ``name``; ``InvalidArgumentError`` if no row has both."""
    binding = context.recipe.data[name]
    indices: list[int] = []
    captions: list[list[str]] = []
    odds: list[NDArray[np.float64]] = []
    families: list[str] = []

    def read(sample: Sample) -> tuple[str, list[tuple[str, float]]]:
        told = [] if sample.first_image is None else _captions(sample, binding, language_weights)
        return sample.family or sample.id, told

    rows = load_samples(source, range(len(source)), read, size=lambda _: 1)
    for index, (family, told) in enumerate(rows):
        if index % _REPORT_ROWS == 0:
            context.progress(f"reading captions of {name}: {index} of {len(source)} rows")
        if told:
            indices.append(index)
            captions.append([text for text, _ in told])
            weights = np.array([weight for _, weight in told])
            odds.append(weights / weights.sum())
            families.append(family)
    if not indices:
        raise invalid(f"recipe.data.{name}", "no row has both an image and a caption")
    return CaptionedRows(indices=np.array(indices), captions=captions, odds=odds, families=families)


def draw(captions: Sequence[T], odds: NDArray[np.float64], rng: np.random.Generator) -> T:
    """One of the captions of an image."""
    return captions[int(np.searchsorted(odds.cumsum(), rng.random(), side="right"))]


def counted(families: Sequence[str]) -> Tensor:
    """bool ``[B, B]``: every pair but those of two rows of one family, which are not known to be unlike."""
    numbers = torch.from_numpy(np.unique(np.array(families), return_inverse=True)[1])
    return (numbers[:, None] != numbers[None, :]) | torch.eye(len(families), dtype=torch.bool)


def _captions(sample: Sample, binding: DataBinding, language_weights: Mapping[str, float]) -> list[tuple[str, float]]:
    """Texts that describe the sample's image, each with its weight; those of weight 0 are left out.

    ``metadata["languages"]`` holds the language of branch 1, 2, ... where a source knows it.
    """
    languages: Sequence[Any] = sample.metadata.get("languages", ())
    found: list[tuple[str, float]] = []
    for segment in sample.segments:
        if segment.type != "text" or not segment.text or (binding.tasks and segment.task not in binding.tasks):
            continue
        language = str(languages[segment.branch - 1]) if 0 < segment.branch <= len(languages) else ""
        weight = language_weights.get(language, 1.0)
        if weight > 0:
            found.append((segment.text, weight))
    return found
