"""What a benchmark is given and what it gives back.

To add one, register a class of kind ``benchmark`` with the attributes and the method of ``Benchmark`` in a module of
``rebus.evaluation.benchmarks``; see this package's README.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from rebus.data.dataset import DatasetReader
from rebus.data.sample import Sample
from rebus.errors import invalid
from rebus.v1.evaluation_pb2 import Prediction, Score

if TYPE_CHECKING:  # a model that answers is scored without loading what embedding needs, and the other way round
    from rebus.generation import Generator
    from rebus.retrieval import Embedder

_ROWS_AT_A_TIME = 256


class Models:
    """The model version under test, loaded when a benchmark first asks for it and shared by all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cached_property
    def generator(self) -> Generator:
        """The model as one that answers; ``FailedPreconditionError`` if it does not."""
        from rebus.generation import Generator

        return Generator.load(self._folder)

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The model as one that embeds; ``FailedPreconditionError`` if it does not."""
        from rebus.retrieval import Embedder

        return Embedder.load(self._folder)


def never() -> bool:
    """The check of a benchmark that nobody cancels."""
    return False


def ignore(fraction: float, message: str) -> None:
    """A listener that does not listen."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The model, the rows that items are taken from, and how to report."""

    models: Models
    rows: DatasetReader
    split: str = "test"
    # Most items to take; 0: all.
    max_items: int = 0
    # Seed of the bootstrap and of the choice of items.
    seed: int = 0
    # Ids of the samples that the model's training data hold.
    seen: Collection[str] = ()
    # Told the share done of this benchmark and what it does now.
    progress: Callable[[float, str], None] = ignore
    # Asked often; the benchmark raises ``CancelledError`` once it says so.
    cancelled: Callable[[], bool] = never

    def clean(self, sample_ids: Sequence[str]) -> NDArray[np.bool_] | None:
        """Which of these samples the training data do not hold; ``None`` if they hold none of the benchmark at all."""
        return np.array([name not in self.seen for name in sample_ids], bool) if self.seen else None

    def samples(self) -> list[Sample]:
        """The split's samples, in an order drawn from the seed, so that the first N are a fair choice."""
        ids = self.rows.row_ids(self.split)
        if not len(ids):
            known = ", ".join(sorted(self.rows.version.splits))
            raise invalid("benchmarks.split", f"{self.rows.version.name} has no {self.split!r} rows; splits: {known}")
        order = np.random.default_rng(self.seed).permutation(ids)
        starts = range(0, len(order), _ROWS_AT_A_TIME)
        return [sample for start in starts for sample in self.rows.take(order[start : start + _ROWS_AT_A_TIME])]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a benchmark found."""

    scores: Sequence[Score]
    predictions: Sequence[Prediction] = field(default_factory=list)


class Benchmark(Protocol):
    """One benchmark. Scores of equal ``version`` over equal rows are comparable."""

    # Changes whenever the items, the prompts or the scoring change.
    version: str
    # Architectures of the models it can score.
    architectures: tuple[str, ...]

    def run(self, context: Context) -> Outcome:
        """Scores the model; raises ``InvalidArgumentError`` where the rows hold no items for it."""
        ...
