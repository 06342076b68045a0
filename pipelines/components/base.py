"""What every component shares: the image it runs in, and how its pod is set up on a cluster."""

# No `from __future__ import annotations` in this package: kfp reads a component's annotations as objects.
from kfp import dsl, kubernetes

# "python" in the name tells kfp's local runner that the image's components run in any Python environment.
IMAGE = "rebus/python:0.1.0"
# In the namespace of the pods: a ConfigMap with `endpoint` and `insecure` (1: send the token in clear, as the network
# encrypts or the cluster is trusted), and, where the services ask for credentials, a Secret with `token`.
CONFIG_MAP = "rebus-client"
SECRET = "rebus-client"


def client_step(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Sets a task up as what it is: a small client of the services, whose address a ConfigMap of its namespace holds,
    and whose token a Secret.

    kfp's own cache stays off: it remembers a result by its name and never asks whether it still exists; the
    services answer a repeated request with the stored result. Retries are for lost pods and lost connections.
    """
    task.set_caching_options(False)
    task.set_retry(num_retries=2, backoff_duration="1s", backoff_factor=4)
    task.set_cpu_limit("1")
    task.set_memory_limit("1G")
    kubernetes.use_secret_as_env(task, SECRET, {"token": "REBUS_TOKEN"}, optional=True)
    variables = {"endpoint": "REBUS_ENDPOINT", "insecure": "REBUS_INSECURE"}
    return kubernetes.use_config_map_as_env(task, CONFIG_MAP, variables)
