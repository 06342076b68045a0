"""Names as people type them: ``scenes/3`` for ``datasets/scenes/versions/3``, ``scenes`` for its newest version,
``runs/latest`` for the newest run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rebus.client import Client
from rebus.errors import NotFoundError, invalid
from rebus.v1.dataset_pb2 import ListCurationsRequest, ListIngestionsRequest
from rebus.v1.evaluation_pb2 import ListEvaluationsRequest
from rebus.v1.retrieval_pb2 import ListIndexesRequest
from rebus.v1.training_pb2 import ListRunsRequest

LATEST = "latest"

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


def job(client: Client, collection: str, name: str) -> str:
    """Like ``full``; ``latest`` is the newest job of the collection, whatever its state."""
    name = full(collection, name)
    if name != f"{collection}/{LATEST}":
        return name
    newest = _newest(client, collection)
    if not newest:
        raise NotFoundError(f"there are no {collection} yet")
    return newest[0].name


def _newest(client: Client, collection: str) -> list[Any]:
    """The newest job of a collection, if there is one; listings begin with it."""
    if collection == "ingestions":
        return list(client.ingestions.ListIngestions(ListIngestionsRequest(page_size=1)).ingestions)
    if collection == "curations":
        return list(client.ingestions.ListCurations(ListCurationsRequest(page_size=1)).curations)
    if collection == "indexes":
        return list(client.retrieval.ListIndexes(ListIndexesRequest(page_size=1)).indexes)
    if collection == "evaluations":
        return list(client.evaluation.ListEvaluations(ListEvaluationsRequest(page_size=1)).evaluations)
    return list(client.training.ListRuns(ListRunsRequest(page_size=1)).runs)


def resolve(client: Client, name: str) -> str:
    """A full name as it is, its ``latest`` replaced: ``evaluations/latest``; a bare id is a run's."""
    collection, slash, identifier = name.partition("/")
    if not slash:
        return job(client, "runs", name)
    return job(client, collection, name) if identifier == LATEST else name


def service_of(name: str) -> str:
    """The service that answers for a resource (a bare id is a run's); an error for a name of no collection."""
    collection = name.partition("/")[0] if "/" in name else "runs"
    if collection not in SERVICES:
        raise invalid("name", f"{name!r} is not the name of a resource; names start with {', '.join(SERVICES)}")
    return SERVICES[collection]


def version(client: Client, collection: str, name: str) -> str:
    """A version's full name: ``scenes`` (the newest), ``scenes/3``, ``scenes/champion``, or the full name itself."""
    return version_name(collection, name, lambda resource: client.get(resource).latest_version)


def version_name(collection: str, name: str, latest_of: Callable[[str], str]) -> str:
    """As ``version``, for whoever can tell the newest version of ``datasets/scenes`` (empty: there is none)."""
    parts = name.removeprefix(f"{collection}/").split("/")
    if len(parts) == 3 and parts[1] == "versions":
        return f"{collection}/{'/'.join(parts)}"
    if len(parts) == 2:
        return f"{collection}/{parts[0]}/versions/{parts[1]}"
    if len(parts) != 1:
        raise invalid("name", f"expected NAME, NAME/VERSION or {collection}/NAME/versions/VERSION, found {name!r}")
    latest = latest_of(f"{collection}/{parts[0]}")
    if not latest:
        raise NotFoundError(f"{collection}/{parts[0]} has no version yet")
    return latest
