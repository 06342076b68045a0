"""Errors as people see them: one line on stderr and exit code 1 (2 for wrong usage, which Typer reports)."""

from __future__ import annotations

import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from rebus.errors import RebusError
from tools.rebus.output import say
from tools.rebus.session import Settings


def one_line(error: BaseException) -> str:
    """``error: recipe.model.width: expected ...``; an error nobody foresaw also says how to see more of it."""
    text = " ".join(str(error).split())
    if isinstance(error, RebusError):
        return f"error: {text or error.reason}"
    return f"error: {type(error).__name__}: {text} (an unexpected error; --debug shows the traceback)"


class RebusGroup(TyperGroup):
    """The root of the command: runs a subcommand and turns its error into one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Typer's own: usage errors and exits carry an exit code, and it reports them itself.
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort | BrokenPipeError):
                raise
            if ctx.ensure_object(Settings).debug:
                traceback.print_exception(error)
            say(one_line(error), style="red")
            raise typer.Exit(1) from None
