"""The evaluation job: fetches the model version, runs its benchmarks, publishes scores and predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from google.protobuf import json_format

from rebus import registry
from rebus.data.dataset import open_version
from rebus.errors import FailedPreconditionError, NotFoundError, invalid
from rebus.evaluation import contamination, outputs
from rebus.evaluation.benchmark import Benchmark, Context, Models, Outcome
from rebus.evaluation.contamination import DEFAULT_SPLIT, Rows
from rebus.evaluation.report import examples
from rebus.jobs.context import JobContext
from rebus.jobs.revision import code_revision
from rebus.store import Store, documents, manifests, model_versions
from rebus.v1.common_pb2 import Manifest
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.evaluation_pb2 import BenchmarkSpec, Evaluation, Prediction
from rebus.v1.model_pb2 import ModelVersion


def checked_evaluation(store: Store, evaluation: Evaluation) -> Evaluation:
    """A new ``Evaluation`` ready to be queued, its alias resolved and its defaults filled in.

    Raises ``InvalidArgumentError`` naming an unknown benchmark or split, ``NotFoundError`` naming a missing model or
    dataset version, ``FailedPreconditionError`` where a benchmark cannot score this kind of model.
    """
    model = model_versions.get(store, evaluation.model_version)
    specs = [_checked_spec(store, model, spec, f"benchmarks[{at}]") for at, spec in enumerate(evaluation.benchmarks)]
    checked = Evaluation(
        model_version=model.name, benchmarks=specs, seed=evaluation.seed, code_revision=code_revision()
    )
    if evaluation.HasField("contamination_policy"):
        checked.contamination_policy.CopyFrom(evaluation.contamination_policy)
    contamination.check_policy(checked)
    return checked


def _checked_spec(store: Store, model: ModelVersion, spec: BenchmarkSpec, field: str) -> BenchmarkSpec:
    registry.get("benchmark", spec.benchmark, field=f"{field}.benchmark")
    architectures = _benchmark(spec).architectures
    if model.architecture not in architectures:
        needed = " or ".join(architectures)
        raise FailedPreconditionError(
            f"{field}: {spec.benchmark} scores models of kind {needed}, {model.name} is a {model.architecture}"
        )
    try:
        version = documents.get(store, DatasetVersion, spec.dataset_version)
    except NotFoundError as error:
        raise NotFoundError(f"{field}.dataset_version: {error}", metadata=error.metadata) from None
    split = spec.split or DEFAULT_SPLIT
    if split not in version.splits:
        known = ", ".join(sorted(version.splits))
        raise invalid(f"{field}.split", f"{version.name} has no {split!r} rows; splits: {known}")
    return BenchmarkSpec(benchmark=spec.benchmark, dataset_version=version.name, split=split, max_items=spec.max_items)


def run(ctx: JobContext) -> None:
    """Does the work of one ``Evaluation``."""
    evaluation = ctx.document(Evaluation)
    model = model_versions.get(ctx.store, evaluation.model_version)
    try:  # an earlier attempt may have died after its manifest and before its document
        manifest = manifests.read(ctx.store, ctx.name)
    except NotFoundError:
        manifest = _evaluate(ctx, evaluation, model)

    def fill(document: Evaluation) -> None:
        document.model_digest, document.code_revision = model.digest, code_revision()
        document.digest = manifest.digest
        document.ClearField("scores")
        document.scores.extend(outputs.read_scores(ctx.store, ctx.name))
        document.benchmark_versions.update(_versions(evaluation))
        document.ClearField("contamination")
        document.contamination.extend(outputs.read_contamination(ctx.store, ctx.name))

    ctx.update(Evaluation, fill)


def _evaluate(ctx: JobContext, evaluation: Evaluation, model: ModelVersion) -> Manifest:
    """Runs the benchmarks and publishes what they found; raises where the gate of contamination lets nothing pass."""
    seen = _seen(ctx, evaluation, model)
    ctx.progress(0.0, f"fetching {model.name}")
    with manifests.fetch(ctx.store, model.name, ctx.cache_dir) as folder:
        models = Models(folder)
        outcomes = [_run_benchmark(ctx, evaluation, models, at, seen) for at in range(len(evaluation.benchmarks))]
    evaluation.model_digest, evaluation.code_revision = model.digest, code_revision()
    evaluation.benchmark_versions.update(_versions(evaluation))
    evaluation.scores.extend(score for outcome in outcomes for score in outcome.scores)
    predictions = [prediction for outcome in outcomes for prediction in outcome.predictions]
    ctx.progress(1.0, "publishing")
    shown = {example.prediction.sample_id for example in examples(predictions)}
    images = images_of(ctx.store, [spec.dataset_version for spec in evaluation.benchmarks], shown)
    return outputs.publish(ctx.store, evaluation, predictions, images)


def _seen(ctx: JobContext, evaluation: Evaluation, model: ModelVersion) -> Mapping[Rows, frozenset[str]]:
    """The items that the model's training data hold; fills in the reports, and raises where one does not pass."""

    def progress(fraction: float, message: str) -> None:
        ctx.check_cancelled()
        ctx.progress(0.0, f"{message} ({fraction:.0%})")

    found = contamination.look_up(ctx.store, evaluation, model, progress)
    evaluation.contamination.extend(comparison.report for comparison in found.values())

    def record(document: Evaluation) -> None:
        document.ClearField("contamination")
        document.contamination.extend(evaluation.contamination)

    try:
        contamination.require(evaluation)
    except FailedPreconditionError:
        ctx.update(Evaluation, record)  # whoever reads why it failed finds the whole report
        raise
    return {rows: comparison.seen for rows, comparison in found.items()}


def _versions(evaluation: Evaluation) -> dict[str, str]:
    return {spec.benchmark: _benchmark(spec).version for spec in evaluation.benchmarks}


def _benchmark(spec: BenchmarkSpec) -> Benchmark:
    return registry.build("benchmark", {"name": spec.benchmark})


def _run_benchmark(
    ctx: JobContext, evaluation: Evaluation, models: Models, at: int, seen: Mapping[Rows, frozenset[str]]
) -> Outcome:
    spec, total = evaluation.benchmarks[at], len(evaluation.benchmarks)

    def progress(fraction: float, message: str) -> None:
        ctx.check_cancelled()
        ctx.progress((at + fraction) / total, f"{spec.benchmark}: {message}")

    progress(0.0, "reading the items")
    context = Context(
        models=models,
        rows=open_version(ctx.store, spec.dataset_version),
        split=spec.split or DEFAULT_SPLIT,
        max_items=spec.max_items,
        seed=evaluation.seed,
        seen=seen.get(contamination.rows_of(spec), frozenset()),
        progress=progress,
        cancelled=lambda: ctx.stopping,
    )
    outcome = _benchmark(spec).run(context)
    for score in outcome.scores:
        ctx.emit("score", json_format.MessageToDict(score, preserving_proto_field_name=True))
    return outcome


def images_of(store: Store, dataset_versions: Iterable[str], sample_ids: Collection[str]) -> dict[str, list[bytes]]:
    """The images of each of these samples, looked up in the dataset versions."""
    found: dict[str, list[bytes]] = {}
    for name in dict.fromkeys(dataset_versions):
        rows = open_version(store, name)
        ids = rows.table(["id"]).column("id").to_pylist()
        places = [place for place, sample_id in enumerate(ids) if sample_id in sample_ids]
        found.update({sample.id: list(sample.media) for sample in rows.take(places)})
    return found


def read_predictions(store: Store, name: str) -> list[Prediction]:
    """All predictions of an evaluation; ``NotFoundError`` if there is no evaluation of that name."""
    documents.get(store, Evaluation, name)
    return outputs.read_predictions(store, name)
