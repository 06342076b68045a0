"""Opens the executor that the command line or the environment names."""

from __future__ import annotations

from pathlib import Path

from rebus.errors import invalid
from rebus.jobs import Executor, LocalExecutor
from rebus.store import Store

EXECUTOR_ENV = "REBUS_EXECUTOR"
SETTINGS_ENV = "REBUS_EXECUTOR_SETTINGS"
EXECUTORS = ("local", "kubernetes")


def open_executor(name: str, store: Store, cache_dir: Path, settings: Path | None = None) -> Executor:
    """``local``: processes of this machine. ``kubernetes``: a cluster, by the settings in a YAML file.

    ``InvalidArgumentError`` for another name, for missing or wrong settings.
    """
    if name == "local":
        return LocalExecutor(store, cache_dir)
    if name != "kubernetes":
        raise invalid("executor", f"expected one of {', '.join(EXECUTORS)}, found {name!r}")
    if settings is None:
        raise invalid("executor", f"kubernetes wants settings: pass --executor-settings or set {SETTINGS_ENV}")
    from services.executors.kubernetes import KubernetesExecutor  # its client takes a second to import

    return KubernetesExecutor.open(store, settings)
