"""How a client proves who it is, and how it knows the server: tokens, TLS, mutual TLS."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from rebus.errors import invalid
from rebus.watched import RELOAD_SECONDS, Watched, read_bounded

TOKEN_ENV = "REBUS_TOKEN"
TOKEN_FILE_ENV = "REBUS_TOKEN_FILE"
TLS_ENV = "REBUS_TLS"
CA_ENV = "REBUS_TLS_CA"
CERT_ENV = "REBUS_TLS_CERT"
KEY_ENV = "REBUS_TLS_KEY"
SERVER_NAME_ENV = "REBUS_TLS_SERVER_NAME"
INSECURE_ENV = "REBUS_INSECURE"

_MAX_TOKEN = 8192


@dataclass(frozen=True)
class Credentials:
    """What a client presents. The default presents nothing and speaks plain HTTP/2."""

    # Bearer token.
    token: str = field(default="", repr=False)
    # File that holds the token; read again when it changes.
    token_file: Path | None = None
    # Speak TLS, trusting the roots that gRPC brings. Setting `ca` says so too.
    tls: bool = False
    # PEM file of the roots to trust instead.
    ca: Path | None = None
    # PEM files of the client's own certificate chain and key, for mutual TLS.
    cert: Path | None = None
    key: Path | None = None
    # Name that the server's certificate must carry, where it is not the endpoint's (behind a forwarded port).
    server_name: str = ""
    # Send the token in clear to another machine: only where something on the way encrypts.
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.token and self.token_file:
            raise invalid(TOKEN_ENV, f"the token is given twice; unset it or {TOKEN_FILE_ENV}")
        if bool(self.cert) != bool(self.key):
            raise invalid(CERT_ENV, f"a certificate and its key belong together; set {CERT_ENV} and {KEY_ENV}")
        if (self.cert or self.server_name) and not self.encrypted:
            raise invalid(TLS_ENV, f"a certificate or a server's name is for TLS; set {CA_ENV}, or {TLS_ENV}=1")
        check_token(self.token, TOKEN_ENV)

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Credentials:
        """What the ``REBUS_*`` variables say; an empty variable counts as unset."""

        def path(name: str) -> Path | None:
            return Path(variables[name]) if variables.get(name) else None

        return cls(
            token=variables.get(TOKEN_ENV, ""),
            token_file=path(TOKEN_FILE_ENV),
            tls=_switch(variables, TLS_ENV),
            ca=path(CA_ENV),
            cert=path(CERT_ENV),
            key=path(KEY_ENV),
            server_name=variables.get(SERVER_NAME_ENV, ""),
            insecure=_switch(variables, INSECURE_ENV),
        )

    def variables(self) -> dict[str, str]:
        """The variables that say the same to another process, whatever its environment says of them otherwise."""
        return {
            TOKEN_ENV: self.token,
            TOKEN_FILE_ENV: str(self.token_file or ""),
            TLS_ENV: "1" if self.tls else "",
            CA_ENV: str(self.ca or ""),
            CERT_ENV: str(self.cert or ""),
            KEY_ENV: str(self.key or ""),
            SERVER_NAME_ENV: self.server_name,
            INSECURE_ENV: "1" if self.insecure else "",
        }

    @property
    def encrypted(self) -> bool:
        """Whether the client speaks TLS."""
        return self.tls or self.ca is not None

    def channel(self, endpoint: str, options: list[tuple[str, str | int]]) -> grpc.Channel:
        """A channel to the endpoint. Refuses to send a token in clear to another machine."""
        if not self.encrypted:
            if (self.token or self.token_file) and not self.insecure and not _this_machine(endpoint):
                raise invalid(
                    "endpoint",
                    f"will not send a token to {endpoint} in clear; set {CA_ENV} or {TLS_ENV}=1, "
                    f"or {INSECURE_ENV}=1 where the network encrypts",
                )
            return grpc.insecure_channel(endpoint, options=options)
        named = [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []
        return grpc.secure_channel(endpoint, self._channel_credentials(), options=[*options, *named])

    def _channel_credentials(self) -> grpc.ChannelCredentials:
        files = ((self.ca, CA_ENV), (self.key, KEY_ENV), (self.cert, CERT_ENV))
        return grpc.ssl_channel_credentials(*(read_bounded(path, name) if path else None for path, name in files))


class Bearer:
    """The ``authorization`` header of each call."""

    def __init__(self, credentials: Credentials, *, interval: float = RELOAD_SECONDS) -> None:
        self._token = credentials.token
        file = credentials.token_file
        self._file = Watched([file], _token, field=TOKEN_FILE_ENV, interval=interval) if file else None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Empty where there is no token."""
        token = self._file.value if self._file else self._token
        return (("authorization", f"Bearer {token}"),) if token else ()


def check_token(token: str, name: str) -> None:
    """Refuses what cannot be a token, before gRPC does it with a message that shows the token."""
    if len(token) > _MAX_TOKEN or not all("!" <= character <= "~" for character in token):
        raise invalid(name, f"expected a token: at most {_MAX_TOKEN} visible ASCII characters, no spaces")


def _token(content: bytes) -> str:
    token = content.decode("ascii", "replace").strip()
    check_token(token, TOKEN_FILE_ENV)
    if not token:
        raise invalid(TOKEN_FILE_ENV, "the file is empty")
    return token


def _switch(variables: Mapping[str, str], name: str) -> bool:
    value = variables.get(name, "")
    if value not in ("", "0", "1"):
        raise invalid(name, f"expected 0 or 1, found {value!r}")
    return value == "1"


def _this_machine(endpoint: str) -> bool:
    """Whether an endpoint is on this machine: what goes there crosses no network."""
    if endpoint.startswith("unix:"):
        return True
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
