"""Work for tests of the executor: what a run does stands in its ``recipe``. Worker processes get it from a
``sitecustomize`` module, see ``test_job_executor``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from rebus.errors import invalid
from rebus.jobs import JobContext
from rebus.v1.training_pb2 import Run

HOOK = """
import dataclasses
from rebus.jobs import kinds
for name in ("runs", "ingestions"):
    kinds.KINDS[name] = dataclasses.replace(kinds.KINDS[name], entry_point="tests.services.job_work:run")
"""


def run(context: JobContext) -> None:
    command, _, argument = context.document(Run).recipe.partition(" ") if context.name.startswith("runs/") else WAIT
    globals()[f"do_{command}"](context, argument)


WAIT = ("wait", "", "")


def do_nothing(context: JobContext, argument: str) -> None:
    """Ends at once."""


def do_wait(context: JobContext, argument: str) -> None:
    """Until told to stop."""
    while True:
        context.check_cancelled()
        time.sleep(0.05)


def do_wait_once(context: JobContext, argument: str) -> None:
    """Until told to stop; a second attempt goes on from there and ends."""
    if context.attempt == 1:
        do_wait(context, argument)


def do_print(context: JobContext, argument: str) -> None:
    """So many lines, then waits."""
    for number in range(int(argument)):
        print(f"line {number}")
    do_wait(context, argument)


def do_exit(context: JobContext, argument: str) -> None:
    print("last words")
    sys.stdout.flush()
    os._exit(int(argument))


def do_signal(context: JobContext, argument: str) -> None:
    os.kill(os.getpid(), signal.Signals[argument])
    time.sleep(60)


def do_refuse(context: JobContext, argument: str) -> None:
    raise invalid("recipe.steps", "must be positive")


def do_family(context: JobContext, argument: str) -> None:
    """Ignores SIGTERM, and has a child in a session of its own that has a child that ignores it too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    grandchild = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    code += f"subprocess.Popen([sys.executable, '-S', '-c', {grandchild!r}], start_new_session=True); time.sleep(600)"
    subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
    time.sleep(600)
