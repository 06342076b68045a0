"""Follows a job: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import typer
from google.protobuf import json_format
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rebus.client import Client
from rebus.v1.common_pb2 import JobEvent
from tools.rebus.output import say, stderr

LINE_SECONDS = 10.0
INTERRUPTED = 130


class View(Protocol):
    """Shows how far a job is."""

    def show(self, fraction: float, message: str) -> None:
        """``fraction`` from 0 to 1."""
        ...


def follow(client: Client, name: str) -> Any:
    """Waits for a job and returns its resource; raises the job's error.

    Jobs have processes of their own, so Ctrl-C only stops the watching and says how to go on.
    """
    try:
        with _view(name) as view:
            return client.wait(name, on_event=_Follower(view))
    except KeyboardInterrupt:
        say(f"{name} goes on; watch it: rebus runs watch {name}; stop it: rebus runs cancel {name}")
        raise typer.Exit(INTERRUPTED) from None


class _Follower:
    """Turns events into what a view shows."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._fraction = 0.0
        self._message = ""
        self._metrics = ""

    def __call__(self, event: JobEvent) -> None:
        values: dict[str, Any] = json_format.MessageToDict(event.values)
        if event.kind == "progress":
            self._fraction, self._message = values["progress"], values["message"]
        elif event.kind == "state":
            self._message = values["state"].lower()
        elif event.kind == "metrics":
            self._metrics = metrics_text(values)
        elif event.kind == "log" and "message" in values:
            say(values["message"])
        self._view.show(self._fraction, "  ".join(filter(None, (self._message, self._metrics))))


_METRICS: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.3f}",
    "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
    "data_wait_share": lambda value: f"data wait {value:.0%}",
}


def metrics_text(values: Mapping[str, Any]) -> str:
    """``loss 1.234  5,120 tokens/s``: the metrics worth a place beside the bar."""
    return "  ".join(show(values[key]) for key, show in _METRICS.items() if key in values)


@contextmanager
def _view(name: str) -> Iterator[View]:
    console = stderr()
    if not console.is_terminal:
        yield LineView(name)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[message]}"), console=console, transient=True) as progress:
        yield BarView(progress, name)


class BarView:
    """One bar of a rich ``Progress``."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=1.0, message="")

    def show(self, fraction: float, message: str) -> None:
        self._progress.update(self._task, completed=fraction, message=message)


class LineView:
    """Plain lines: the first, then no more than one in ``LINE_SECONDS``."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._last = float("-inf")

    def show(self, fraction: float, message: str) -> None:
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            say(f"{self._label}: {fraction:.0%} {message}".rstrip())
