"""Promote: the better model becomes the champion."""

from kfp import dsl

from pipelines.components.base import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    comparison: dsl.Output[dsl.Metrics],
    metric: str,
    revision: str = "",
) -> str:
    """Points the alias `champion` at a model version if it beats the present champion; returns the champion's name.

    Args:
        metric: The score that decides, higher is better: `benchmark/group/metric`, or `benchmark/metric` for a whole
            benchmark.
        revision: Enters the request id of the champion's evaluation.
    """
    from pipelines import artifacts, steps
    from rebus.v1.evaluation_pb2 import Evaluation
    from rebus.v1.model_pb2 import ModelVersion

    candidate, scored = artifacts.read(model, ModelVersion), artifacts.read(evaluation, Evaluation)
    champion, values = steps.promote(candidate, scored, metric, revision)
    for name, value in values.items():
        comparison.log_metric(name, value)
    return champion
