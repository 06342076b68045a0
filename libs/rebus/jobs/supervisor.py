"""Watches one worker process and records its end where the worker could not: ``python -m rebus.jobs.supervisor``.

The supervisor is detached from the service that starts it, so a job outlives a restart of its service; it imports
nothing heavy, so a hundred of them cost little.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from types import FrameType

import psutil

from rebus.errors import AbortedError, CancelledError, RebusError
from rebus.jobs import status
from rebus.jobs.tracing import traced
from rebus.store import Store, documents
from rebus.v1.common_pb2 import JobStatus

CANCEL_GRACE_SECONDS = 20.0
LOG_LINES = 200
ERROR_LINES = 12
_PR_SET_PDEATHSIG = 1


def process_path(cache_dir: Path, name: str) -> Path:
    """The file that tells a restarted service which process of this machine supervises the job."""
    return cache_dir / "jobs" / f"{name.replace('/', '--')}.json"


def supervise(store_url: str, name: str, cache_dir: Path) -> int:
    """Runs the worker, forwards SIGTERM to it, and records why it ended if it could not do so itself."""
    _record_process(process_path(cache_dir, name))
    worker = subprocess.Popen(
        [sys.executable, "-m", "rebus.jobs.worker", "--store", store_url, "--name", name, "--cache-dir", cache_dir],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_die_with_parent,
    )
    signal.signal(signal.SIGTERM, _forward(worker))
    output = _tail(worker)
    code = worker.wait()
    store = Store.open(store_url)
    if output:
        store.put(f"{name}/log.txt", "".join(output).encode())
    if code:
        _record_ending(store, name, code, output)
    process_path(cache_dir, name).unlink(missing_ok=True)
    return 0


def _record_process(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    process = psutil.Process()
    temporary = path.with_suffix(f".{process.pid}")
    temporary.write_text(json.dumps({"pid": process.pid, "create_time": process.create_time()}))
    temporary.replace(path)


def _die_with_parent() -> None:
    """Asks Linux to kill the worker if its supervisor dies, so that no orphan goes on writing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _forward(worker: subprocess.Popen[bytes]):
    def handler(_signal: int, _frame: FrameType | None) -> None:
        worker.send_signal(signal.SIGTERM)
        timer = threading.Timer(CANCEL_GRACE_SECONDS, worker.kill)
        timer.daemon = True
        timer.start()

    return handler


def _tail(worker: subprocess.Popen[bytes]) -> deque[str]:
    """The last lines of the worker's output; returns when the worker closes it."""
    assert worker.stdout is not None
    lines: deque[str] = deque(maxlen=LOG_LINES)
    for line in worker.stdout:
        lines.append(line.decode(errors="replace"))
    return lines


def _record_ending(store: Store, name: str, code: int, output: deque[str]) -> None:
    """Ends the job of a worker that died before it could do so itself; a state that is final stays."""
    if status.job_of(documents.get(store, documents.type_of(name), name)).cancel_requested:
        status.transition(store, name, JobStatus.CANCELLED, error=CancelledError(f"{name} was cancelled"))
        return
    if code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        error: RebusError = AbortedError(f"the worker was killed by {signal.Signals(-code).name}{hint}")
    else:
        last = "".join(list(output)[-ERROR_LINES:]).strip()
        error = RebusError(f"the worker ended with exit code {code}: {last or 'no output'}")
    status.transition(store, name, JobStatus.FAILED, error=error)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--cache-dir", required=True, type=Path)
    args = parser.parse_args(argv)
    os.umask(0o077)
    with traced("supervisor", args.store, args.name):
        return supervise(args.store, args.name, args.cache_dir)


if __name__ == "__main__":
    raise SystemExit(main())
