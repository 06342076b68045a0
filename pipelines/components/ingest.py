"""Ingest: sources into a dataset version."""

from kfp import dsl

from pipelines.components.base import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    version: dsl.Output[dsl.Dataset], dataset: str, sources: list, max_bad_share: float = 0.1, revision: str = ""
):
    """Reads sources into a new version of a dataset.

    Args:
        dataset: Id of the dataset; created if it does not exist.
        sources: What to read, e.g. [{"reader": "emoji", "settings": {}}] (messages `rebus.v1.Source`).
        max_bad_share: The step fails when more than this share of the samples is bad.
        revision: Enters the request id; another value reads the sources again.
    """
    from pipelines import artifacts, steps

    artifacts.write(version, steps.ingest(dataset, sources, max_bad_share, revision))
