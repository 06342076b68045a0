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
