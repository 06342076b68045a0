"""``rebus up``: serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rebus.errors import invalid
from tools.rebus.output import say
from tools.rebus.session import Session, stored

DEFAULT_PORT = 8080
_PANEL = "Security (OIDC and more by the environment: see services/harness/README.md)"


@stored
def up(
    session: Session,
    services: Annotated[
        list[str] | None,
        typer.Argument(help="Services to serve: ingest, training, retrieval, generation, evaluation. Default: all."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = DEFAULT_PORT,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="File of bearer tokens; see `rebus tokens create`.", envvar="REBUS_TOKENS", rich_help_panel=_PANEL
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="The server's certificates (PEM).", envvar="REBUS_SERVER_TLS_CERT", rich_help_panel=_PANEL),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(help="Its private key (PEM).", envvar="REBUS_SERVER_TLS_KEY", rich_help_panel=_PANEL),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            help="Refuse clients without a certificate of these roots (PEM).",
            envvar="REBUS_SERVER_TLS_CLIENT_CA",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Serve other machines without credentials.", rich_help_panel=_PANEL),
    ] = False,
) -> None:
    """Serves the services in the foreground, until Ctrl-C."""
    from services.harness.server import NAMES, main

    names = services or NAMES
    for name in names:
        if name not in NAMES:
            raise invalid("services", f"no service {name!r}; there are {', '.join(NAMES)}")
    files = {"--tokens": tokens, "--tls-cert": tls_cert, "--tls-key": tls_key, "--tls-client-ca": tls_client_ca}
    security = [word for option, path in files.items() if path for word in (option, str(path))]
    security += ["--insecure"] if insecure else []
    say(f"store {session.own_store_url}; stop with Ctrl-C")
    raise typer.Exit(main(names, ["--host", host, "--port", str(port), "--store", session.own_store_url, *security]))
