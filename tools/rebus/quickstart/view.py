"""Shows a running pipeline: one line a step, the present one with a bar."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from pipelines import local
from tools.rebus.follow import LINE_SECONDS
from tools.rebus.output import say, stderr

STARTED = "started"


class PipelineView:
    """Takes the pipeline's ``Progress``; a context manager, so that the last step is closed.

    A terminal shows bars, anything else a line when a step starts and one every ``LINE_SECONDS``.
    """

    def __init__(self) -> None:
        console = stderr()
        self._plain = not console.is_terminal
        columns = (SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"), BarColumn())
        self._bars = Progress(
            *columns, TimeElapsedColumn(), TextColumn("{task.fields[message]}"), console=console, disable=self._plain
        )
        self._task: TaskID | None = None
        self._said = float("-inf")

    def __enter__(self) -> PipelineView:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()

    def __call__(self, progress: local.Progress) -> None:
        """Shows one report."""
        if progress.message == STARTED or self._task is None:
            self._finish()
            self._task = self._bars.add_task(progress.step, total=1.0, message="")
            self._said = float("-inf")
        self._bars.update(self._task, completed=progress.fraction, message=progress.message)
        if self._plain and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            say(f"{progress.step}: {progress.fraction:.0%} {progress.message}")

    def _finish(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=1.0, message="")
