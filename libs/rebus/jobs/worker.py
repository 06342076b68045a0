"""The process that does one job's work: ``python -m rebus.jobs.worker --store URL --name runs/x``.

It ends with exit code 0 once the job's state is final and truthful; anything else is for the supervisor to explain.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from pathlib import Path

from rebus.errors import CancelledError, RebusError
from rebus.jobs import status
from rebus.jobs.context import JobContext
from rebus.jobs.kinds import entry_point
from rebus.jobs.tracing import traced
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus

ERROR_LINES = 12


def run(store: Store, name: str, cache_dir: Path) -> None:
    """Does the work of a QUEUED job and records how it ended."""
    context = JobContext(store, name, cache_dir)
    signal.signal(signal.SIGTERM, lambda *_: context.stop())
    if not status.transition(store, name, JobStatus.RUNNING):
        return
    if status.job_of(documents.get(store, documents.type_of(name), name)).cancel_requested:
        context.stop()
    try:
        context.check_cancelled()
        entry_point(name)(context)
        context.flush()
    except CancelledError as error:
        _end(context, JobStatus.CANCELLED, error)
    except RebusError as error:
        _end(context, JobStatus.FAILED, error)
    except Exception:
        lines = traceback.format_exc().strip().splitlines()
        print("\n".join(lines), file=sys.stderr)
        _end(context, JobStatus.FAILED, RebusError("\n".join(lines[-ERROR_LINES:])))
    else:
        status.transition(store, name, JobStatus.SUCCEEDED)


def _end(context: JobContext, state: status.State, error: RebusError) -> None:
    context.flush()
    status.transition(context.store, context.name, state, error=error)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--cache-dir", required=True, type=Path)
    args = parser.parse_args(argv)
    with traced("worker", args.store, args.name):
        run(Store.open(args.store), args.name, args.cache_dir)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
