"""``rebus up``: serves."""

from __future__ import annotations

from typing import Annotated

import typer

from rebus.errors import invalid
from tools.rebus.output import say
from tools.rebus.session import Session, stored

DEFAULT_PORT = 8080


@stored
def up(
    session: Session,
    services: Annotated[
        list[str] | None,
        typer.Argument(help="Services to serve: ingest, training, retrieval, generation, evaluation. Default: all."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = DEFAULT_PORT,
) -> None:
    """Serves the services in the foreground, until Ctrl-C."""
    from services.harness.server import NAMES, main

    names = services or NAMES
    for name in names:
        if name not in NAMES:
            raise invalid("services", f"no service {name!r}; there are {', '.join(NAMES)}")
    say(f"store {session.own_store_url}; stop with Ctrl-C")
    raise typer.Exit(main(names, ["--host", host, "--port", str(port), "--store", session.own_store_url]))
