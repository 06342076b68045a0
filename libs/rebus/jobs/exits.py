"""How an attempt at a job ended, as data: the error for people and the ``JobExit`` for programs."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Sequence

from rebus.errors import AbortedError, CancelledError, RebusError, ResourceExhaustedError
from rebus.v1.common_pb2 import JobExit

ERROR_LINES = 12
MAX_LINE = 2000
Ending = tuple[RebusError, JobExit]


def of_exception(error: Exception) -> Ending:
    """Of an exception that the job's code raised; a domain error stays what it is."""
    lines = [str(error)] if isinstance(error, RebusError) else _last(traceback.format_exception(error))
    if is_out_of_memory(error):
        text = "\n".join(lines)
        return ResourceExhaustedError(f"out of memory: {text}"), JobExit(reason=JobExit.OUT_OF_MEMORY, last_lines=lines)
    kept = error if isinstance(error, RebusError) else RebusError("\n".join(lines))
    return kept, JobExit(reason=JobExit.EXCEPTION, last_lines=lines)


def of_process(code: int, output: Sequence[str], *, oom_killed: bool) -> Ending:
    """Of a worker that could not say it itself: its return code as ``subprocess`` gives it, its last output.

    ``oom_killed``: the kernel counted a kill for lack of memory at the time; only then SIGKILL is taken for one.
    """
    lines = _last(output)
    if code >= 0:
        text = "\n".join(lines) or "no output"
        exit = JobExit(reason=JobExit.EXCEPTION, exit_code=code, last_lines=lines)
        return RebusError(f"the worker ended with exit code {code}: {text}"), exit
    name = signal_name(-code)
    if -code == signal.SIGKILL and oom_killed:
        exit = JobExit(reason=JobExit.OUT_OF_MEMORY, signal=name, last_lines=lines)
        return ResourceExhaustedError(f"the worker was killed by {name}: the kernel ran out of memory"), exit
    exit = JobExit(reason=JobExit.SIGNAL, signal=name, last_lines=lines)
    return AbortedError(f"the worker was killed by {name}"), exit


def cancelled(name: str) -> Ending:
    """Of a job whose caller cancelled it."""
    return CancelledError(f"{name} was cancelled"), JobExit(reason=JobExit.CANCELLED)


def preempted(name: str) -> Ending:
    """Of a job whose process was told to stop though nobody had cancelled it."""
    return AbortedError(f"{name} was preempted: its process was told to stop"), JobExit(reason=JobExit.PREEMPTED)


def lost(why: str) -> Ending:
    """Of a job whose processes are gone without a word."""
    return AbortedError(f"the job's processes are gone: {why}"), JobExit(reason=JobExit.LOST)


def signal_name(number: int) -> str:
    """``SIGSEGV`` of 11; real-time signals by their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, an accelerator's (``torch.OutOfMemoryError``, told by name) and the CPU allocator's of torch."""
    named = type(error).__name__ == "OutOfMemoryError"
    allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or named or allocator


def _last(lines: Sequence[str]) -> list[str]:
    return [line[:MAX_LINE] for line in "".join(lines).strip().splitlines()[-ERROR_LINES:]]
