"""Which code does the work of which resource.

The entry points are strings: jobs stand below the packages that hold the work, and starting a worker must not
import more than its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from rebus.errors import invalid

ENTRY_POINTS: dict[str, str] = {
    "ingestions": "rebus.data.jobs:run_ingestion",
    "curations": "rebus.data.jobs:run_curation",
    "runs": "rebus.training.job:run",
    "indexes": "rebus.retrieval.job:run",
    "evaluations": "rebus.evaluation.job:run",
}


def collection_of(name: str) -> str:
    """``runs`` of ``runs/x``; ``InvalidArgumentError`` if resources of that name are no jobs."""
    collection, _, identifier = name.partition("/")
    if collection not in ENTRY_POINTS or not identifier or "/" in identifier:
        raise invalid("name", f"{name!r} is not the name of a job")
    return collection


def entry_point(name: str) -> Callable[[Any], None]:
    """The function that does the work of the named job."""
    module, _, function = ENTRY_POINTS[collection_of(name)].partition(":")
    return getattr(importlib.import_module(module), function)
