"""Train: a recipe and a dataset version into a run."""

from kfp import dsl

from pipelines.components.base import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    version: dsl.Input[dsl.Dataset],
    run: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    recipe: str,
    seed: int = 0,
    revision: str = "",
):
    """Trains a recipe on a dataset version.

    Args:
        recipe: Name of a packaged recipe, or a recipe as YAML text.
        seed: Seed of everything random in the run.
        revision: Enters the request id; another value trains again.
    """
    from pipelines import artifacts, steps
    from rebus.v1.dataset_pb2 import DatasetVersion

    trained = steps.train(artifacts.read(version, DatasetVersion), recipe, seed, revision)
    artifacts.write(run, trained)
    for name in sorted(trained.metrics):
        metrics.log_metric(name, trained.metrics[name])
