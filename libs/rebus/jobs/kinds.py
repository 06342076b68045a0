"""Which code does the work of which resource, and how such work may be treated.

The entry points are strings: jobs stand below the packages that hold the work, and starting a worker must not
import more than its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rebus.errors import invalid
from rebus.jobs.resources import ResourceRequest

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of job."""

    # ``module:function``, called with the job's ``JobContext``. A job that was interrupted goes on by itself: it must
    # end with the same result, however often it begins again.
    entry_point: str
    # What such a job asks for unless its caller says otherwise.
    resources: ResourceRequest


KINDS: dict[str, Kind] = {
    "ingestions": Kind(entry_point="rebus.data.jobs:run_ingestion", resources=ResourceRequest(memory_bytes=GIB // 2)),
    "curations": Kind(entry_point="rebus.data.jobs:run_curation", resources=ResourceRequest(memory_bytes=GIB // 2)),
    "runs": Kind(entry_point="rebus.training.job:run", resources=ResourceRequest(memory_bytes=GIB)),
    "indexes": Kind(entry_point="rebus.retrieval.job:run", resources=ResourceRequest(memory_bytes=GIB)),
    "evaluations": Kind(entry_point="rebus.evaluation.job:run", resources=ResourceRequest(memory_bytes=GIB)),
}


def collection_of(name: str) -> str:
    """``runs`` of ``runs/x``; ``InvalidArgumentError`` if resources of that name are no jobs."""
    collection, _, identifier = name.partition("/")
    if collection not in KINDS or not identifier or "/" in identifier:
        raise invalid("name", f"{name!r} is not the name of a job")
    return collection


def kind_of(name: str) -> Kind:
    """The kind of the named job."""
    return KINDS[collection_of(name)]


def entry_point(name: str) -> Callable[[Any], None]:
    """The function that does the work of the named job."""
    module, _, function = kind_of(name).entry_point.partition(":")
    return getattr(importlib.import_module(module), function)
