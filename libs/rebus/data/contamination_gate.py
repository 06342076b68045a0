"""The gate that training and evaluation share: a benchmark against all the rows that a model is trained on.

What some rows hold of a benchmark is kept in the store, below ``contamination/``, under a digest of both versions'
contents, the rows and the match: it is computed once, and can still be told when the training data are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from rebus import config as configs
from rebus.data.contamination import BenchmarkIndex, ContaminationReport, held_items
from rebus.data.contamination_match import MatchConfig, match_to_message
from rebus.data.dataset import open_version
from rebus.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    invalid,
)
from rebus.store import Store, documents
from rebus.store.sealed import seal, unseal
from rebus.v1.contamination_pb2 import Contamination, SeenItem, TrainingRows
from rebus.v1.dataset_pb2 import DatasetVersion

COLLECTION = "contamination"
FIRST_SEEN = 5
# Changes whenever equal versions and settings would give other matches.
_CODE_VERSION = 1
# Of one dataset version: the evaluation or the run goes on, and says so.
_UNKNOWN = (NotFoundError, DataLossError, InvalidArgumentError, ResourceExhaustedError)

# Told the share done and what is being looked through; may raise to stop.
Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True)
class TrainedRows:
    """Rows of a dataset version, of that content, that a model is trained on; no split and no sources: all of them."""

    version: str
    digest: str
    split: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What is reported, and the ids of all items that were seen, of which the report names the first."""

    report: Contamination
    seen: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A record of the store, without the names, which may change."""

    num_items: int
    num_samples: int
    seen: dict[str, tuple[str, str]]


def compare(
    store: Store,
    benchmark: str,
    training: Sequence[TrainedRows],
    config: MatchConfig,
    *,
    max_samples: int = 0,
    progress: Progress = lambda fraction, message: None,
) -> Comparison:
    """Looks for the items of version ``benchmark`` in all these rows.

    Rows that cannot be looked through are reported as unknown, with the reason: those of a version that is gone, that
    was altered, or, where nobody looked before, more than ``max_samples`` rows or items (0: any number). Raises
    ``NotFoundError`` if the benchmark is gone and ``InvalidArgumentError`` if it has no items.
    """
    asked = _Benchmark(store, benchmark, config)
    report = asked.empty_report()
    seen: dict[str, SeenItem] = {}
    for at, rows in enumerate(training):
        part = TrainingRows(
            dataset_version=rows.version, dataset_digest=rows.digest, split=rows.split, sources=rows.sources
        )
        try:
            found = asked.held(
                rows, max_samples, _share_of(progress, at, len(training), f"{benchmark} in {rows.version}")
            )
        except _UNKNOWN as error:
            part.unknown = str(error)
            report.unknown.append(str(error))
        else:
            part.num_samples, part.num_seen = found.num_samples, len(found.seen)
            for item, (sample, reason) in found.seen.items():
                seen.setdefault(item, SeenItem(item=item, dataset_version=rows.version, sample=sample, reason=reason))
        report.training.append(part)
    report.num_seen = len(seen)
    report.share = len(seen) / report.num_items
    report.first_seen.extend(seen[item] for item in sorted(seen)[:FIRST_SEEN])
    return Comparison(report, frozenset(seen))


def require(report: Contamination, max_share: float) -> None:
    """The gate: ``FailedPreconditionError`` if more than ``max_share`` of the items was seen or it cannot be told."""
    named = report.benchmark_version + (f" ({report.split})" if report.split else "")
    if report.share > max_share:
        told = "; ".join(
            f"{seen.item}: {seen.dataset_version} sample {seen.sample} has {seen.reason}" for seen in report.first_seen
        )
        raise FailedPreconditionError(
            f"the training data hold {report.share:.1%} of {named}, more than {max_share:.1%}: {report.num_seen} of "
            f"{report.num_items} items ({told}); the curator `contamination` drops the rows that hold them"
        )
    if report.unknown:
        raise FailedPreconditionError(
            f"whether the training data hold more than {max_share:.1%} of {named} is unknown: "
            + "; ".join(report.unknown)
        )


class _Benchmark:
    """A benchmark whose index is built when rows must be looked through that nobody looked through before."""

    def __init__(self, store: Store, name: str, config: MatchConfig) -> None:
        self._store, self._config = store, config
        self._version = documents.get(store, DatasetVersion, name)
        self._num_items = self._version.splits[config.split] if config.split else self._version.num_samples
        if not self._num_items:
            raise invalid("benchmark", f"{name} has no rows of split {config.split!r}")

    @cached_property
    def _index(self) -> BenchmarkIndex:
        return BenchmarkIndex(open_version(self._store, self._version.name), self._config)

    def empty_report(self) -> Contamination:
        return Contamination(
            benchmark_version=self._version.name,
            benchmark_digest=self._version.digest,
            split=self._config.split,
            match=match_to_message(self._config),
            num_items=self._num_items,
        )

    def held(self, rows: TrainedRows, max_samples: int, progress: Progress) -> _Held:
        path = f"{COLLECTION}/{self._key(rows)}.json"
        try:
            return configs.build(_Held, unseal(self._store.get(path), path), where=path)
        except (NotFoundError, DataLossError):  # an altered record is computed anew
            found = self._look(rows, max_samples, progress)
        held = _Held(num_items=found.num_items, num_samples=found.num_samples, seen=found.seen)
        self._store.put(path, seal(configs.to_plain(held)))
        return held

    def _key(self, rows: TrainedRows) -> str:
        of = {"digest": rows.digest, "split": rows.split, "sources": sorted(rows.sources)}
        config = configs.to_plain(self._config)
        return configs.digest(
            {"code": _CODE_VERSION, "benchmark": self._version.digest, "training": of, "match": config}
        )

    def _look(self, rows: TrainedRows, max_samples: int, progress: Progress) -> ContaminationReport:
        version = documents.get(self._store, DatasetVersion, rows.version)
        if version.digest != rows.digest:
            raise DataLossError(f"{rows.version} is not the one that was trained on: its digest differs")
        total = version.splits[rows.split] if rows.split else version.num_samples
        if max_samples and total > max_samples:
            raise ResourceExhaustedError(
                f"{rows.version} has {total} rows to look through, over max_samples={max_samples}"
            )
        if max_samples and self._num_items > max_samples:
            raise ResourceExhaustedError(f"{self._version.name} has {self._num_items} items, over {max_samples=}")
        progress(0.0, "")
        return held_items(
            self._index,
            open_version(self._store, rows.version),
            split=rows.split,
            sources=rows.sources,
            progress=lambda read: progress(read / max(total, 1), ""),
        )


def _share_of(progress: Progress, at: int, total: int, message: str) -> Progress:
    return lambda fraction, _: progress((at + fraction) / total, f"looking for items of {message}")
