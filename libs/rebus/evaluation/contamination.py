"""How much of an evaluation's benchmarks the training data of its model hold, its parents' data included."""

from __future__ import annotations

from collections.abc import Mapping

from rebus import config as configs
from rebus.data import contamination_gate
from rebus.data.contamination_gate import Comparison, Progress, TrainedRows, compare
from rebus.data.contamination_match import match_from_message
from rebus.errors import InvalidArgumentError, NotFoundError
from rebus.store import Store, documents, model_versions
from rebus.training.contamination import trained_rows
from rebus.training.recipe import DataBinding
from rebus.v1.evaluation_pb2 import BenchmarkSpec, Evaluation
from rebus.v1.model_pb2 import ModelVersion
from rebus.v1.training_pb2 import Run

DEFAULT_SPLIT = "test"
DEFAULT_MAX_SAMPLES = 20_000
_MAX_ANCESTORS = 1000

# The rows that a benchmark takes its items from: dataset version and split.
Rows = tuple[str, str]


def rows_of(spec: BenchmarkSpec) -> Rows:
    """Where the benchmark's items come from."""
    return spec.dataset_version, spec.split or DEFAULT_SPLIT


def check_policy(evaluation: Evaluation) -> None:
    """Raises ``InvalidArgumentError`` where the evaluation's policy is out of range."""
    match_from_message(evaluation.contamination_policy.match, split="", field="contamination_policy.match")


def look_up(store: Store, evaluation: Evaluation, model: ModelVersion, progress: Progress) -> Mapping[Rows, Comparison]:
    """A comparison for each of the rows that the evaluation's benchmarks take items from; none if its policy skips it.

    What cannot be told is reported as unknown, with the reason. ``NotFoundError`` if a benchmark's rows are gone.
    """
    policy = evaluation.contamination_policy
    if policy.skip:
        return {}
    training, unknown = rows_behind(store, model)
    found: dict[Rows, Comparison] = {}
    for rows in dict.fromkeys(map(rows_of, evaluation.benchmarks)):
        version, split = rows
        config = match_from_message(policy.match, split=split, field="contamination_policy.match")
        limit = policy.max_samples or DEFAULT_MAX_SAMPLES
        comparison = compare(store, version, training, config, max_samples=limit, progress=progress)
        comparison.report.unknown.extend(unknown)
        if policy.HasField("max_share"):
            comparison.report.max_share = policy.max_share
        found[rows] = comparison
    return found


def require(evaluation: Evaluation) -> None:
    """Raises ``FailedPreconditionError`` where a report of a gated evaluation does not pass."""
    for report in evaluation.contamination:
        if report.HasField("max_share"):
            contamination_gate.require(report, report.max_share)


def rows_behind(store: Store, model: ModelVersion) -> tuple[list[TrainedRows], list[str]]:
    """The rows that a model version and those it started from were trained on, and why some are not known."""
    bound: list[tuple[DataBinding, tuple[str, str]]] = []
    unknown: list[str] = []
    pending, met = [model], {model.name}
    while pending and len(met) < _MAX_ANCESTORS:
        version = pending.pop()
        try:
            bound += _consumed(store, version)
        except (NotFoundError, InvalidArgumentError) as error:
            unknown.append(f"the training data of {version.name}: {error}")
        for parent in version.parents:
            if parent in met:
                continue
            met.add(parent)
            try:
                pending.append(model_versions.get(store, parent))
            except (NotFoundError, InvalidArgumentError) as error:
                unknown.append(f"the training data of {parent}: {error}")
    return trained_rows(bound), unknown


def _consumed(store: Store, version: ModelVersion) -> list[tuple[DataBinding, tuple[str, str]]]:
    """What the version's run drew from: the recipe's binding, and the dataset version's name and digest."""
    if not version.run:
        raise NotFoundError("it names no run")
    if not version.mixture:
        raise NotFoundError("it names no dataset version")
    recipe = configs.parse_yaml(documents.get(store, Run, version.run).recipe)
    # Only the data: the rest may name components that this release does not have any more.
    data = recipe.get("data") or {}
    return [
        (
            configs.build(DataBinding, data.get(share.source) or {}, where=f"recipe.data.{share.source}"),
            (share.dataset_version, share.dataset_digest),
        )
        for share in version.mixture
    ]
