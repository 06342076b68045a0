"""Models kept loaded between calls: verified copies of published versions, the least recently used dropped."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from rebus import cancellation
from rebus.errors import FailedPreconditionError
from rebus.store import documents, manifests, model_versions
from rebus.v1.model_pb2 import ModelVersion
from services.harness.runtime import Runtime

T = TypeVar("T")
CAPACITY = 4


class ModelCache(Generic[T]):
    """Loads versions of some architectures; one load at a time, so that two calls never hold two copies."""

    def __init__(self, runtime: Runtime, architectures: Sequence[str], load: Callable[[Path], T]) -> None:
        self._runtime = runtime
        self._architectures = architectures
        self._load = load
        self._loaded: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> tuple[str, T]:
        """The version's own name (an alias resolved) and the loaded model.

        Raises ``NotFoundError``, or ``FailedPreconditionError`` if the version is of another.
        """
        store = self._runtime.store
        name = model_versions.resolve(store, name)
        with self._lock:
            cancellation.current().check()  # the wait for another's load may have been long
            if name not in self._loaded:
                version = documents.get(store, ModelVersion, name)
                if version.architecture not in self._architectures:
                    raise FailedPreconditionError(
                        f"{name} is a {version.architecture}; this call needs a {' or '.join(self._architectures)}"
                    )
                with manifests.fetch(store, name, self._runtime.cache_dir) as folder:
                    self._loaded[name] = self._load(folder)
            self._loaded.move_to_end(name)
            while len(self._loaded) > CAPACITY:
                self._loaded.popitem(last=False)
            return name, self._loaded[name]
