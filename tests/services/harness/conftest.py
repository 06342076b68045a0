"""A server that asks for credentials: a token of each role, and an identity provider's keys in a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from services.harness.auth import Security
from services.harness.auth import tokens as token_files
from services.harness.auth.oidc import OidcConfig
from services.harness.embedded import hosted
from services.harness.telemetry import Telemetry, TelemetrySettings
from tests.services.harness.identity import AUDIENCE, ISSUER, SigningKey, jwk_set

ROLES = ("viewer", "editor", "operator")


@dataclass(frozen=True)
class Secured:
    """A running server, and what it takes."""

    endpoint: str
    metrics_port: int
    # By role.
    tokens: dict[str, str]
    key: SigningKey


def write_tokens(path: Path) -> dict[str, str]:
    """A token file with one token of each role, named by it; returns the tokens."""
    made = {role: token_files.create(role, role) for role in ROLES}
    for _, entry in made.values():
        token_files.append(path, entry)
    return {role: token for role, (token, _) in made.items()}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    tokens, key = write_tokens(folder / "tokens.yaml"), SigningKey("first")
    (folder / "jwks.json").write_bytes(jwk_set(key))
    security = Security(
        tokens=folder / "tokens.yaml", oidc=OidcConfig(ISSUER, AUDIENCE, str(folder / "jwks.json")), reload_seconds=0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBUS_CACHE", str(folder / "cache"))
        telemetry = Telemetry(TelemetrySettings(metrics_port=0))
        with hosted((folder / "store").as_uri(), security=security, telemetry=telemetry) as endpoint:
            assert telemetry.metrics_port is not None
            yield Secured(endpoint, telemetry.metrics_port, tokens, key)


@pytest.fixture
def guarded(secured: Secured) -> Iterator[grpc.Channel]:
    """A bare channel to that server."""
    with grpc.insecure_channel(secured.endpoint) as channel:
        yield channel
