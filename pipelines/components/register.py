"""Register: a run's last checkpoint into a model version."""

from kfp import dsl

from pipelines.components.base import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(run: dsl.Input[dsl.Artifact], version: dsl.Output[dsl.Model], model: str) -> str:
    """Registers the last checkpoint of a run as a version of a model; returns its name.

    Args:
        model: Id of the model; created if it does not exist.
    """
    from pipelines import artifacts, steps
    from rebus.v1.training_pb2 import Run

    registered = steps.register(artifacts.read(run, Run), model)
    artifacts.write(version, registered)
    return registered.name
