"""Names as people type them: ``scenes/3`` for ``datasets/scenes/versions/3``, ``scenes`` for its newest version."""

from __future__ import annotations

from rebus.client import Client
from rebus.errors import NotFoundError, invalid

# Which service answers for which collection, and looks after its jobs.
SERVICES = {
    "datasets": "ingest",
    "ingestions": "ingest",
    "curations": "ingest",
    "runs": "training",
    "models": "training",
    "indexes": "retrieval",
    "evaluations": "evaluation",
}


def full(collection: str, name: str) -> str:
    """``runs/x`` of ``x`` or of ``runs/x``."""
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"


def service_of(name: str) -> str:
    """The service that answers for a resource; an error for a name of no collection."""
    collection = name.partition("/")[0]
    if collection not in SERVICES:
        raise invalid("name", f"{name!r} is not the name of a resource; names start with {', '.join(SERVICES)}")
    return SERVICES[collection]


def version(client: Client, collection: str, name: str) -> str:
    """A version's full name: ``scenes`` (the newest), ``scenes/3``, ``scenes/champion``, or the full name itself."""
    parts = name.removeprefix(f"{collection}/").split("/")
    if len(parts) == 3 and parts[1] == "versions":
        return f"{collection}/{'/'.join(parts)}"
    if len(parts) == 2:
        return f"{collection}/{parts[0]}/versions/{parts[1]}"
    if len(parts) != 1:
        raise invalid("name", f"expected NAME, NAME/VERSION or {collection}/NAME/versions/VERSION, found {name!r}")
    latest: str = client.get(f"{collection}/{parts[0]}").latest_version
    if not latest:
        raise NotFoundError(f"{collection}/{parts[0]} has no version yet")
    return latest
