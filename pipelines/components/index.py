"""Index: the images of a dataset version into a searchable index."""

from kfp import dsl

from pipelines.components.base import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def index(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    built: dsl.Output[dsl.Artifact],
    split: str = "",
    algorithm: str = "flat",
    revision: str = "",
) -> str:
    """Builds an index over the images of a dataset version; returns its name.

    Args:
        split: Only rows of this split; empty for all.
        algorithm: A registered index.
        revision: Enters the request id; another value builds again.
    """
    from pipelines import artifacts, steps
    from rebus.v1.dataset_pb2 import DatasetVersion
    from rebus.v1.model_pb2 import ModelVersion

    version, embedder = artifacts.read(dataset, DatasetVersion), artifacts.read(model, ModelVersion)
    done = steps.index(version, embedder, split, algorithm, revision)
    artifacts.write(built, done)
    return done.name
