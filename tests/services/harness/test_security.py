"""What a server refuses to start with, and what its command line says."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rebus.errors import FailedPreconditionError, InvalidArgumentError
from rebus.store import Store
from services.harness.address import host_of, is_loopback, join
from services.harness.auth import Security, security, tokens
from services.harness.auth.oidc import OidcConfig
from services.harness.runtime import Runtime
from services.harness.server import Host
from services.harness.tls import TlsConfig

LOOPBACK = ("127.0.0.1:8080", "127.1.2.3:8080", "[::1]:8080", "localhost:8080")
OTHERS = ("0.0.0.0:8080", "[::]:8080", "10.0.0.1:8080", "rebus.example:8080", "[::ffff:10.0.0.1]:8080", ":8080")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    tokens.append(tmp_path / "tokens.yaml", tokens.create("ci", "viewer")[1])
    return tmp_path / "tokens.yaml"


def host(store: Store, address: str, **settings: Any) -> Host:
    return Host([], Runtime.open(store.url), address=address, security=Security(**settings))


def start_and_stop(started: Host) -> None:
    async def run() -> None:
        await started.start()
        await started.stop(0)

    asyncio.run(run())


@pytest.mark.parametrize("address", OTHERS)
def test_a_server_for_others_asks_for_credentials(store: Store, address: str) -> None:
    started = host(store, address)
    with pytest.raises(FailedPreconditionError, match="pass --tokens or --oidc-issuer, or --insecure"):
        start_and_stop(started)
    assert started.port == 0


@pytest.mark.parametrize("address", LOOPBACK)
def test_on_this_machine_it_need_not(address: str) -> None:
    Security().check_address(address)


def test_insecure_serves_others_and_says_so_loudly(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    start_and_stop(host(store, "0.0.0.0:0", insecure=True))
    (record,) = [record for record in caplog.records if "INSECURE" in record.message]
    assert record.levelname == "WARNING"


def test_tokens_without_tls_are_warned_of(store: Store, token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    start_and_stop(host(store, "0.0.0.0:0", tokens=token_file))
    assert "no TLS on 0.0.0.0:0" in caplog.text


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"tokens": Path("/no/such/file")}, "tokens"),
        ({"tls": TlsConfig(Path("/no/such/file"), Path("/no/such/file"))}, "tls"),
    ],
)
def test_a_missing_file_keeps_a_server_from_starting(store: Store, settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{field}: cannot read /no/such/file"):
        start_and_stop(host(store, "127.0.0.1:0", **settings))


def parsed(*words: str) -> Security:
    parser = argparse.ArgumentParser()
    security.add_arguments(parser)
    return security.from_arguments(parser.parse_args(words))


def test_the_command_line_says_all_of_it() -> None:
    assert parsed() == Security()
    found = parsed(
        *("--tokens", "t.yaml", "--insecure", "--no-reflection"),
        *("--oidc-issuer", "https://i.example", "--oidc-audience", "rebus", "--oidc-jwks", "https://i.example/keys"),
        *("--oidc-role-claim", "groups", "--oidc-algorithms", "ES256, EdDSA"),
        *("--tls-cert", "c.pem", "--tls-key", "k.pem", "--tls-client-ca", "ca.pem"),
    )
    assert found == Security(
        tokens=Path("t.yaml"),
        oidc=OidcConfig(
            "https://i.example", "rebus", "https://i.example/keys", role_claim="groups", algorithms=("ES256", "EdDSA")
        ),
        tls=TlsConfig(Path("c.pem"), Path("k.pem"), Path("ca.pem")),
        insecure=True,
        reflection=False,
    )


def test_the_environment_says_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBUS_TOKENS", "t.yaml")
    monkeypatch.setenv("REBUS_SERVER_TLS_CERT", "c.pem")
    monkeypatch.setenv("REBUS_SERVER_TLS_KEY", "k.pem")
    assert parsed() == Security(tokens=Path("t.yaml"), tls=TlsConfig(Path("c.pem"), Path("k.pem")))


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--oidc-issuer", "i"), "oidc.audience"),
        (("--oidc-jwks", "i"), "oidc.issuer"),
        (("--tls-cert", "c"), "tls.key"),
        (("--tls-client-ca", "c"), "tls.cert"),
    ],
)
def test_what_is_missing_is_named(words: tuple[str, ...], field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{field}: is required"):
        parsed(*words)


def test_addresses() -> None:
    assert [host_of(address) for address in ("a:1", "[::1]:1", "0.0.0.0:1")] == ["a", "::1", "0.0.0.0"]
    assert [join(name, 1) for name in ("a", "::1", "[::1]")] == ["a:1", "[::1]:1", "[::1]:1"]
    assert not is_loopback("")


@pytest.mark.slow
def test_the_server_process_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.training.server", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(
        [*command, "--store", tmp_path.as_uri()], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "will not serve 0.0.0.0:0 to everybody" in done.stderr
    assert "Traceback" not in done.stderr
