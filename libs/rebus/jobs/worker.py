"""The process that does one job's work: ``python -m rebus.jobs.worker --store URL --name runs/x``.

It ends with exit code 0 once the job's state is final (or PREEMPTED) and truthful; anything else is for the
supervisor to explain.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from pathlib import Path

from rebus.errors import AbortedError, CancelledError, RebusError
from rebus.jobs import exits, status
from rebus.jobs.context import JobContext
from rebus.jobs.kinds import entry_point
from rebus.jobs.preemption import interrupt
from rebus.jobs.settings import JobSettings
from rebus.jobs.tracing import traced
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus

# Exit code of a worker that found its job taken: `EX_TEMPFAIL` of sysexits.h.
TAKEN = 75


def run(store: Store, name: str, cache_dir: Path, *, host: str | None = None) -> bool:
    """Does the work of a QUEUED job that ``host`` looks after, and records how it ended.

    False if there was nothing to do: another worker has the job, another host, or it has ended.
    """
    context = JobContext(store, name, cache_dir)
    signal.signal(signal.SIGTERM, lambda *_: context.stop())
    if not status.transition(store, name, JobStatus.RUNNING, host=host):
        return False
    job = _job(store, name)
    context.attempt = job.attempts
    if job.cancel_requested:
        context.stop()
    try:
        context.check_cancelled()
        entry_point(name)(context)
        context.flush()
    except CancelledError as error:
        _stopped(context, error)
    except Exception as error:
        if not isinstance(error, RebusError):
            traceback.print_exc(file=sys.stderr)
        _end(context, JobStatus.FAILED, exits.of_exception(error))
    else:
        status.transition(store, name, JobStatus.SUCCEEDED, attempt=context.attempt)
    return True


def _stopped(context: JobContext, error: CancelledError) -> None:
    """Who stops a job says so in its document first; without that, its machine stops it."""
    if _job(context.store, context.name).cancel_requested:
        _end(context, JobStatus.CANCELLED, (error, exits.cancelled(context.name)[1]))
        return
    _flush(context)
    limit = JobSettings.from_environment().max_preemptions
    interrupt(context.store, context.name, exits.preempted(context.name), limit, attempt=context.attempt)


def _end(context: JobContext, state: status.State, ending: exits.Ending) -> None:
    _flush(context)
    error, exit = ending
    status.transition(context.store, context.name, state, error=error, exit=exit, attempt=context.attempt)


def _flush(context: JobContext) -> None:
    try:
        context.flush()
    except AbortedError as error:  # another attempt has begun: its state is not this one's to set, nor its log
        print(error, file=sys.stderr)


def _job(store: Store, name: str) -> JobStatus:
    return status.job_of(documents.get(store, documents.type_of(name), name))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--cache-dir", required=True, type=Path)
    parser.add_argument("--host", help="who looks after the job; without it, whoever does")
    args = parser.parse_args(argv)
    with traced("worker", args.store, args.name):
        return 0 if run(Store.open(args.store), args.name, args.cache_dir, host=args.host) else TAKEN


if __name__ == "__main__":
    raise SystemExit(main())
