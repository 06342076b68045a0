"""Where a command works: a server it is told of, or services it hosts itself for as long as it runs.

Every command that needs them is decorated with ``connected`` (or ``stored``): it takes a ``Session`` first, and
gains the options ``--endpoint``, ``--store`` and ``--debug``, which the root command takes too.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rebus.client import ENDPOINT_ENV, Client, Credentials
from rebus.client.errors import translated
from rebus.errors import DeadlineExceededError, RebusError, UnavailableError, invalid
from tools.rebus.output import stderr

STORE_ENV = "REBUS_STORE"
DEFAULT_STORE = ".rebus/store"
CONNECT_SECONDS = 5.0
_PANEL = "Where to work"

EndpointOption = Annotated[
    str | None,
    typer.Option(
        help="Server to call, host:port. Without one, the command hosts the services itself. "
        f"Environment: {ENDPOINT_ENV}.",
        rich_help_panel=_PANEL,
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        help="Store to work on without a server: file:///folder or s3://bucket/prefix. "
        f"Default: {DEFAULT_STORE} in the current folder. Environment: {STORE_ENV}.",
        rich_help_panel=_PANEL,
    ),
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show logs, and tracebacks of errors.", rich_help_panel=_PANEL)
]
# Name -> (annotation, default).
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "endpoint": (EndpointOption, None),
    "store": (StoreOption, None),
    "debug": (DebugOption, False),
}


@dataclass
class Settings:
    """What the command line says of where to work; the environment fills in what it leaves open."""

    endpoint: str | None = None
    store: str | None = None
    debug: bool = False

    def add(self, *, endpoint: str | None = None, store: str | None = None, debug: bool = False) -> None:
        """Lays the options of a subcommand over those of the root."""
        self.endpoint = endpoint if endpoint is not None else self.endpoint
        self.store = store if store is not None else self.store
        if debug and not self.debug:
            self.debug = True
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")


class Session:
    """Resolved settings. The command line wins over the environment, a server over a store."""

    def __init__(self, settings: Settings) -> None:
        if settings.endpoint and settings.store:
            raise invalid("--endpoint", "a server has its own store; give --endpoint or --store, not both")
        from_environment = "" if settings.store else os.environ.get(ENDPOINT_ENV, "")
        self.endpoint = settings.endpoint or from_environment
        self._store = settings.store or os.environ.get(STORE_ENV, "")

    @property
    def own_store_url(self) -> str:
        """The store of services that this command hosts."""
        return self._store or (Path.cwd() / DEFAULT_STORE).as_uri()

    @property
    def store_url(self) -> str:
        """The store for a command that reads it directly; an error where only a server is named, whose store is
        not known here."""
        if self.endpoint and not self._store:
            raise invalid("--store", f"this command reads the store itself; give the store of {self.endpoint}")
        return self.own_store_url

    @contextmanager
    def client(self, *services: str) -> Iterator[Client]:
        """A client of the named services (of all, if none is named)."""
        with ExitStack() as stack:
            endpoint = self.endpoint or stack.enter_context(self._hosted(services))
            # The variables' credentials are for a server; services of our own listen on loopback and ask for none.
            credentials = Credentials.from_environment() if self.endpoint else Credentials()
            client = stack.enter_context(Client(endpoint, credentials=credentials))
            if self.endpoint:
                _require_server(client)
            yield client

    @contextmanager
    def _hosted(self, services: tuple[str, ...]) -> Iterator[str]:
        with stderr().status("starting the services"):
            from services.harness.embedded import hosted
            from services.harness.server import NAMES

            stack = ExitStack()
            endpoint = stack.enter_context(hosted(self.own_store_url, dict.fromkeys(services or NAMES)))
        with stack:
            yield endpoint


def connected(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a Typer command of a function whose first parameter is a ``Session``."""
    return _with_options(function, ("endpoint", "store", "debug"))


def stored(function: Callable[..., None]) -> Callable[..., None]:
    """Like ``connected``, for a command that works on the store itself and calls no server."""
    return _with_options(function, ("store", "debug"))


def _with_options(function: Callable[..., None], names: tuple[str, ...]) -> Callable[..., None]:
    hints = get_type_hints(function, include_extras=True)
    own = [p.replace(annotation=hints[p.name]) for p in list(inspect.signature(function).parameters.values())[1:]]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
        for name, (hint, default) in _OPTIONS.items()
        if name in names
    ]

    @functools.wraps(function)
    def command(ctx: typer.Context, **values: Any) -> None:
        settings = ctx.find_root().ensure_object(Settings)
        settings.add(**{name: values.pop(name) for name in names})
        function(Session(settings), **values)

    parameters = [context, *own, *options]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _require_server(client: Client) -> None:
    """Finds out at once, and not after a long deadline, that nobody answers."""
    stub: Any = health_pb2_grpc.HealthStub(client.channel)  # its methods are set at run time
    try:
        with translated(client.endpoint):
            stub.Check(health_pb2.HealthCheckRequest(), timeout=CONNECT_SECONDS)
    except UnavailableError:
        raise
    except DeadlineExceededError:
        raise UnavailableError(f"no Rebus server answers at {client.endpoint} within {CONNECT_SECONDS:.0f} s") from None
    except RebusError as error:
        raise UnavailableError(f"what answers at {client.endpoint} is not a Rebus server: {error}") from None
