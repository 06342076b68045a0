"""The gate before the first step: what a run's data hold of the benchmarks that its recipe names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from rebus.data.contamination_gate import TrainedRows, compare, require
from rebus.errors import NotFoundError, invalid
from rebus.jobs.context import JobContext
from rebus.store import Store, documents
from rebus.training.recipe import DataBinding, TrainingRecipe
from rebus.v1.contamination_pb2 import Contamination
from rebus.v1.dataset_pb2 import Dataset, DatasetVersion
from rebus.v1.training_pb2 import Run

_VERSION = re.compile(r"datasets/[a-z0-9][a-z0-9-]{0,62}/versions/[0-9]{1,9}")
_DATASET = re.compile(r"datasets/[a-z0-9][a-z0-9-]{0,62}")


def bound_benchmarks(recipe: TrainingRecipe) -> set[str]:
    """The logical names of datasets that the recipe's benchmarks are."""
    return {gate.benchmark for gate in recipe.benchmarks if not gate.benchmark.startswith("datasets/")}


def benchmark_versions(store: Store, recipe: TrainingRecipe, datasets: Mapping[str, str]) -> dict[str, str]:
    """The version that each name of a benchmark stands for now; ``datasets`` are the run's.

    Raises ``InvalidArgumentError`` or ``NotFoundError`` naming the benchmark that does not exist or lacks the split.
    """
    found: dict[str, str] = {}
    for at, gate in enumerate(recipe.benchmarks):
        field = f"recipe.benchmarks.{at}"
        name = found[gate.benchmark] = _version(store, gate.benchmark, datasets, f"{field}.benchmark")
        splits = documents.get(store, DatasetVersion, name).splits
        if gate.split and gate.split not in splits:
            known = ", ".join(sorted(splits))
            raise invalid(f"{field}.split", f"{name} has no {gate.split!r} rows; splits: {known}")
    return found


def _version(store: Store, name: str, datasets: Mapping[str, str], field: str) -> str:
    if not name.startswith("datasets/"):
        if name not in datasets:
            raise invalid(field, f"the run binds no dataset {name!r}; bind it, or name datasets/<id>/versions/<n>")
        return datasets[name]
    if not (_VERSION.fullmatch(name) or _DATASET.fullmatch(name)):
        raise invalid(field, f"expected datasets/<id> or datasets/<id>/versions/<n>, found {name!r}")
    try:
        if _VERSION.fullmatch(name):
            return documents.get(store, DatasetVersion, name).name
        latest = documents.get(store, Dataset, name).latest_version
    except NotFoundError as error:
        raise NotFoundError(f"{field}: {error}", metadata=error.metadata) from None
    if not latest:
        raise NotFoundError(f"{field}: {name} has no version yet", metadata={"name": name})
    return latest


def check_benchmarks(ctx: JobContext, run: Run, recipe: TrainingRecipe) -> None:
    """Records what the run's data hold of each benchmark, then lets it pass or raises ``FailedPreconditionError``.

    A resumed run finds in the store what an earlier attempt computed.
    """
    if not recipe.benchmarks:
        return
    named = dict(run.benchmark_versions) or benchmark_versions(ctx.store, recipe, run.datasets)
    rows = trained_rows(
        (binding, _content(ctx.store, run.datasets[binding.dataset])) for binding in recipe.data.values()
    )

    def progress(fraction: float, message: str) -> None:
        ctx.check_cancelled()
        ctx.progress(0.0, f"{message} ({fraction:.0%})")

    reports: list[Contamination] = []
    for gate in recipe.benchmarks:
        report = compare(ctx.store, named[gate.benchmark], rows, gate.match, progress=progress).report
        report.max_share = gate.max_share
        reports.append(report)

    def record(document: Run) -> None:
        document.ClearField("contamination")
        document.contamination.extend(reports)

    ctx.update(Run, record)
    for report in reports:
        require(report, report.max_share)


def _content(store: Store, version: str) -> tuple[str, str]:
    return version, documents.get(store, DatasetVersion, version).digest


def trained_rows(bound: Iterable[tuple[DataBinding, tuple[str, str]]]) -> list[TrainedRows]:
    """What data bindings draw from dataset versions (name and digest), each version and split once.

    Rows are told apart by split and source: a binding's tasks leave out segments, and a few steps leave out rows, so
    that this is an upper bound of what a model saw.
    """
    sources: dict[tuple[str, str, str], list[tuple[str, ...]]] = defaultdict(list)
    for binding, (version, digest) in bound:
        sources[version, digest, binding.split].append(tuple(binding.sources))
    return [
        TrainedRows(
            version=version,
            digest=digest,
            split=split,
            sources=() if () in drawn else tuple(sorted({source for each in drawn for source in each})),
        )
        for (version, digest, split), drawn in sorted(sources.items())
    ]
