"""The jobs that have not ended: one small object each, so that finding them does not read every job there ever was.

``active/<id>--<collection>.json``. Ids are time-ordered, so the listing is the queue: first come, first served, and a
preempted job takes its old place. An entry may outlive its job by a moment and is removed by whoever sees it.
"""

from __future__ import annotations

from rebus.errors import AlreadyExistsError
from rebus.store.objects import Store
from rebus.store.sealed import seal

FOLDER = "active"


def add(store: Store, name: str) -> None:
    """Adds a job; adding it again is no error."""
    try:
        store.create(_path(name), seal({"name": name}))
    except AlreadyExistsError:
        return


def remove(store: Store, name: str) -> None:
    """Removes a job; removing one that is not there is no error."""
    store.delete(_path(name))


def names(store: Store) -> list[str]:
    """All of them, those accepted first before the others."""
    found: list[str] = []
    for info in store.list(FOLDER):
        identifier, _, collection = info.path.removeprefix(f"{FOLDER}/").removesuffix(".json").rpartition("--")
        found.append(f"{collection}/{identifier}")
    return found


def _path(name: str) -> str:
    collection, _, identifier = name.partition("/")
    return f"{FOLDER}/{identifier}--{collection}.json"
