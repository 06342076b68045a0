"""A job's processes as part of the trace of the call that started it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rebus import tracing
from rebus.errors import RebusError
from rebus.jobs import status
from rebus.jobs.kinds import collection_of
from rebus.store import Store, documents


@contextmanager
def traced(role: str, store_url: str, name: str) -> Iterator[None]:
    """A span around the whole of a process (``supervisor``, ``worker``) of the named job."""
    attributes = {"rebus.job": name, "rebus.job.kind": collection_of(name)}
    with tracing.process(f"rebus-{role}", f"job {role}", attributes, parent=_parent(store_url, name)):
        yield


def _parent(store_url: str, name: str) -> str:
    """The parent process's span if that is of the job's trace, else the call's that started the job.

    Whatever else stands in the environment was inherited from the service, and is of another trace.
    """
    inherited = os.environ.get(tracing.ENVIRONMENT, "")
    try:
        stored = status.job_of(documents.get(Store.open(store_url), documents.type_of(name), name)).traceparent
    except RebusError:
        return ""  # the process itself finds out, and says what is wrong
    return inherited if _trace_id(inherited) == _trace_id(stored) else stored


def _trace_id(traceparent: str) -> str:
    return traceparent[3:35]
