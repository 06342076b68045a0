"""Samples that hold what a benchmark asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from rebus.data.contamination import BenchmarkIndex
from rebus.data.contamination_match import MatchConfig
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.dataset import open_version
from rebus.registry import register
from rebus.store import Store

CONTAMINATED_BY = "contaminated_by"


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig(MatchConfig):
    """The benchmark's dataset version, and whether rows that hold its items are dropped or only marked."""

    benchmark: str
    drop: bool = True


@register("curator", "contamination", config=ContaminationConfig)
class Contamination(Curator):
    """Drops samples that hold items of a benchmark, by n-grams, perceptual hashes or embeddings.

    Adds ``contaminated_by``: the id of an item that the sample holds, null where it holds none.
    """

    adds: Mapping[str, pa.DataType] = {CONTAMINATED_BY: pa.string()}

    def __init__(self, config: ContaminationConfig) -> None:
        self._config = config
        self._index: BenchmarkIndex
        self.reads = config.reads

    def prepare(self, store: Store) -> None:
        """Reads the benchmark."""
        self._index = BenchmarkIndex(open_version(store, self._config.benchmark), self._config)

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """The first item found in each row counts."""
        reasons, items = [KEEP] * observed.num_rows, [None] * observed.num_rows
        for match in reversed(self._index.matches(observed)):
            items[match.row] = match.item
            reasons[match.row] = f"has {match.reason} of {match.item} in {self._config.benchmark}"
        return Judgement(reasons if self._config.drop else [KEEP] * observed.num_rows, {CONTAMINATED_BY: items})
