"""Runs a pipeline on this machine with kfp's own local runner: the same components, each in a process of its own.

kfp's runner replaces the root logger's handlers and ``builtins.print`` while it runs, so it gets a process to
itself; its log goes to a file, and the steps' own lines come out as ``Progress``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rebus import tracing
from rebus.client import ENDPOINT_ENV, Credentials
from rebus.errors import RebusError
from rebus.status import error_class

Name = Literal["mllm", "embedder", "end-to-end"]
LOG = "pipeline.log"
# kfp numbers the tasks of nested pipelines: train, train-2.
_STARTED = re.compile(r"Executing task \S*?'(?P<step>[a-z]+)(-\d+)?'")
_PROGRESS = re.compile(r"^\s*\[(?P<step>[a-z]+)\] (?P<percent>\d+)% ?(?P<message>.*)$")
_ERROR = re.compile(r"^\s*(?P<line>\[[a-z]+\] error: (?P<reason>[A-Z_]+): .*)$")


@dataclass(frozen=True)
class Progress:
    """How far a step of the pipeline is."""

    step: str
    fraction: float
    message: str


def run(
    pipeline: Name,
    arguments: Mapping[str, Any],
    *,
    endpoint: str,
    credentials: Credentials | None = None,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, str]:
    """Runs a pipeline against the services at ``endpoint`` and returns its outputs, resource names by output.

    Without ``credentials``, the steps present those of the ``REBUS_*`` variables.

    Artifacts and the log (``pipeline.log``) stay below ``folder``. Raises the error of the step that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task = {"pipeline": pipeline, "arguments": dict(arguments), "folder": str(folder.resolve())}
    outputs = folder / "outputs.json"
    outputs.unlink(missing_ok=True)
    variables = {ENDPOINT_ENV: endpoint, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines.local"],
        env={**os.environ, **_trace(), **variables, **(credentials.variables() if credentials else {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdin is not None
            with process.stdin:
                json.dump(task, process.stdin)
            error = _follow(process, folder / LOG, on_progress)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if error is not None:
        raise error
    return json.loads(outputs.read_text())


def _trace() -> dict[str, str]:
    """The trace that all steps of a pipeline are part of: the caller's, if it is in one."""
    return {tracing.ENVIRONMENT: os.environ.get(tracing.ENVIRONMENT) or tracing.new_traceparent()}


def _follow(process: subprocess.Popen[str], log: Path, on_progress: Callable[[Progress], None]) -> RebusError | None:
    """Copies the output to the log until the process ends; the error it ended with, if any."""
    assert process.stdout is not None
    error = None
    with log.open("w", encoding="utf-8") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            if match := _STARTED.search(line):
                on_progress(Progress(match["step"], 0.0, "started"))
            elif match := _PROGRESS.match(line):
                on_progress(Progress(match["step"], int(match["percent"]) / 100, match["message"]))
            elif match := _ERROR.match(line):
                error = error_class(match["reason"])(match["line"])
    if process.wait() == 0:
        return None
    return error or RebusError(f"the pipeline failed; its log: {log}")


def _execute(task: Mapping[str, Any]) -> None:
    """The child process: runs the pipeline and writes its outputs."""
    from kfp import local

    from pipelines.end_to_end import PIPELINES

    warnings.simplefilter("ignore")
    folder = Path(task["folder"])
    runner = local.SubprocessRunner(use_venv=False)
    local.init(runner, pipeline_root=str(folder), raise_on_error=True)
    finished = PIPELINES[task["pipeline"]](**task["arguments"])
    temporary = folder / "outputs.json.partial"
    temporary.write_text(json.dumps(dict(finished.outputs)))
    temporary.replace(folder / "outputs.json")


if __name__ == "__main__":
    _execute(json.load(sys.stdin))
