"""Tasks by name: one module a task, imported here so that recipes find it."""

from rebus.training.tasks import contrastive, mllm, mllm_contrastive

__all__ = ["contrastive", "mllm", "mllm_contrastive"]
