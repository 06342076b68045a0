"""Where jobs run: processes of this machine, or a Kubernetes cluster, behind one interface."""

from services.executors.choice import EXECUTORS, open_executor

__all__ = ["EXECUTORS", "open_executor"]
