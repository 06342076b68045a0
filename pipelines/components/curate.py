"""Curate: one dataset version into the next."""

from kfp import dsl

from pipelines.components.base import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def curate(
    ingested: dsl.Input[dsl.Dataset], version: dsl.Output[dsl.Dataset], curators: list, revision: str = ""
) -> str:
    """Curates a dataset version into a new one; returns its name.

    Args:
        curators: Operators in order, e.g. [{"curator": "exact-dedup"}] (messages `rebus.v1.Curator`); none: the
            version stays as it is.
        revision: Enters the request id; another value curates again.
    """
    from pipelines import artifacts, steps
    from rebus.v1.dataset_pb2 import DatasetVersion

    curated = steps.curate(artifacts.read(ingested, DatasetVersion), curators, revision)
    artifacts.write(version, curated)
    return curated.name
