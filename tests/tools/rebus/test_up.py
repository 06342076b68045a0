"""``rebus up`` serves until it is interrupted."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

from rebus.store import Store
from tests.tools.rebus.conftest import Command


@pytest.mark.slow
def test_serves_until_interrupted(rebus: Command, history: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "from tools.rebus.main import app; app()", "up", "training", "--port", "0"]
    with subprocess.Popen([*command, "--store", history.url], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            port = next(m[1] for line in server.stderr if (m := re.search(r"on port (\d+)", line)))
            monkeypatch.delenv("REBUS_STORE")
            listed = rebus("models", "list", "--endpoint", f"127.0.0.1:{port}")
            assert "models/m" in listed.stdout, listed.stderr
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
        finally:
            server.kill()


def test_an_unknown_service_is_one_line(rebus: Command) -> None:
    assert rebus("up", "trainings").stderr == (
        "error: services: no service 'trainings'; there are ingest, training, retrieval, generation, evaluation\n"
    )


def test_others_are_not_served_without_credentials(rebus: Command) -> None:
    done = rebus("up", "training", "--host", "0.0.0.0", "--port", "0")
    assert done.exit_code == 1


def test_the_options_of_security_reach_the_server(rebus: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("services.harness.server.main", lambda names, argv: seen.append(argv) or 0)
    options = ["--tokens", "t.yaml", "--tls-cert", "c.pem", "--tls-key", "k.pem", "--tls-client-ca", "ca.pem"]
    assert rebus("up", "training", *options, "--insecure").exit_code == 0
    assert rebus("up", "training").exit_code == 0
    assert seen[0][6:] == [*options, "--insecure"]
    assert seen[1][6:] == []
