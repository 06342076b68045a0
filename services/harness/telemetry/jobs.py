"""How many jobs of each kind are in each state, as the store says."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from prometheus_client import Gauge

from rebus.errors import NotFoundError
from rebus.jobs import status
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus

# A job that has ended changes only if somebody resumes it, so each refresh reads only some of those again.
ENDED_PER_REFRESH = 20


class JobStates:
    """Keeps a gauge right for the jobs of some collections; not thread-safe."""

    def __init__(self, store: Store, collections: Iterable[str], gauge: Gauge) -> None:
        self._store = store
        self._gauge = gauge
        self._ended: dict[str, OrderedDict[str, int]] = {name: OrderedDict() for name in collections}

    def refresh(self) -> None:
        """Reads the jobs that are new or have not ended, and counts. Raises what the store raises."""
        for collection, ended in self._ended.items():
            names = [f"{collection}/{identifier}" for identifier in self._store.folders(collection)]
            again = set(list(ended)[:ENDED_PER_REFRESH])
            found: Counter[int] = Counter()
            for name in names:
                state = ended.get(name)
                if state is None or name in again:
                    state = self._state(name)
                    ended.pop(name, None)
                    if state in status.TERMINAL:
                        ended[name] = state
                found[state] += 1
            for name in ended.keys() - set(names):
                del ended[name]
            for label, state in JobStatus.State.items():
                if state != JobStatus.STATE_UNSPECIFIED:
                    self._gauge.labels(collection, label).set(found[state])

    def _state(self, name: str) -> int:
        try:
            return status.job_of(documents.get(self._store, documents.type_of(name), name)).state
        except NotFoundError:  # a folder whose document is not there yet, or no longer
            return JobStatus.STATE_UNSPECIFIED
