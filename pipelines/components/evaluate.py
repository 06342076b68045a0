"""Evaluate: a model version and a dataset version into scores."""

from kfp import dsl

from pipelines.components.base import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    scores: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    table: dsl.Output[dsl.HTML],
    benchmarks: list,
    confusion_of: str = "",
    seed: int = 0,
    revision: str = "",
) -> str:
    """Scores a model version; returns the evaluation's name.

    Args:
        benchmarks: What to run, e.g. [{"benchmark": "scene-questions"}] (messages `rebus.v1.BenchmarkSpec`).
        confusion_of: `benchmark/group` whose answers are drawn as a confusion matrix; empty for none.
        seed: Seed of the bootstrap and of item selection.
        revision: Enters the request id; another value evaluates again.
    """
    from pathlib import Path

    from pipelines import artifacts, steps
    from rebus.v1.dataset_pb2 import DatasetVersion
    from rebus.v1.model_pb2 import ModelVersion

    version, candidate = artifacts.read(dataset, DatasetVersion), artifacts.read(model, ModelVersion)
    done = steps.evaluate(version, candidate, benchmarks, seed, revision)
    artifacts.write(evaluation, done)
    for score in done.scores:
        scores.log_metric(artifacts.score_key(score), score.value)
    title = f"{done.name}: {done.model_version}"
    Path(table.path).write_text(artifacts.score_table(title, done.scores), encoding="utf-8")
    if confusion_of:
        benchmark, _, group = confusion_of.partition("/")
        labels, matrix = artifacts.confusion(steps.predictions(done.name, benchmark, group))
        confusion.log_confusion_matrix(labels, matrix)
    return done.name
