"""Long work as jobs: a state, progress, events, cancel, and processes that outlive the service that started them."""

from rebus.jobs.context import JobContext
from rebus.jobs.executor import Executor, LocalExecutor
from rebus.jobs.resources import ResourceRequest

__all__ = ["Executor", "JobContext", "LocalExecutor", "ResourceRequest"]
