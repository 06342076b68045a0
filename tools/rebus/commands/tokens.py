"""``rebus tokens``: bearer tokens for a server's token file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tools.rebus.output import say

app = typer.Typer(no_args_is_help=True, help="Bearer tokens that a server takes.")


class RoleChoice(StrEnum):
    """Roles, lowest first."""

    VIEWER = "viewer"
    EDITOR = "editor"
    OPERATOR = "operator"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose token it is; the audit log shows it.")],
    role: Annotated[RoleChoice, typer.Option(help="What it may do: read; also make and run; also remove.")],
    file: Annotated[
        Path | None, typer.Option(help="Token file to add the entry to; without one, the entry is only shown.")
    ] = None,
) -> None:
    """Makes a token and prints it, once: the token file keeps its SHA-256 alone."""
    from services.harness.auth import tokens

    token, entry = tokens.create(name, role.value)
    if file is not None:
        tokens.append(file, entry)
        say(f"added {entry.name} ({entry.role}) to {file}")
    else:
        say(f"for the server's token file:\n{entry.line.rstrip()}")
    typer.echo(token)
