"""Jobs on a Kubernetes cluster: ``batch/v1`` Jobs, Kubeflow TrainJobs or PyTorchJobs."""

from services.executors.kubernetes.executor import KubernetesExecutor
from services.executors.kubernetes.settings import KubernetesSettings, load_settings

__all__ = ["KubernetesExecutor", "KubernetesSettings", "load_settings"]
