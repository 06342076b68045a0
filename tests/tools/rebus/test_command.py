"""The command line itself: help for everything, cheap imports, one line an error."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.tools.rebus.conftest import Command
from tools.rebus.errors import one_line
from tools.rebus.main import app

NAMED = {
    "quickstart", "up", "ingest", "datasets", "train", "runs", "models", "index", "search", "embed", "generate",
    "eval", "export", "lineage", "contamination", "components", "papers", "gc", "fsck", "doctor", "tokens",
}  # fmt: skip


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its path, groups included."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = list(commands(typer.main.get_command(app)))


def test_the_commands_are_those_named() -> None:
    assert {path[0] for path, _ in ALL if path} == NAMED


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) or "rebus" for path, _ in ALL])
def test_every_command_and_option_explains_itself(path: tuple[str, ...], command: Any) -> None:
    assert command.help
    assert [parameter.name for parameter in command.params if not parameter.help] == []
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_importing_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, tools.rebus.main; print(sorted({'torch', 'lance', 'faiss', 'kfp', 'services'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def only_line(result: Any) -> str:
    """stderr, which must be one line; nothing may have gone to stdout."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    return result.stderr.strip()


def test_a_missing_resource_is_one_line(rebus: Command) -> None:
    assert only_line(rebus("models", "show", "nothing")) == "error: no models/nothing"
    assert only_line(rebus("runs", "show", "nothing")) == "error: no runs/nothing"
    assert only_line(rebus("datasets", "show", "nothing/3")) == "error: no datasets/nothing/versions/3"
    assert only_line(rebus("lineage", "evaluations/x")) == "error: no evaluations/x"


def test_a_bad_name_is_one_line_that_names_the_field(rebus: Command) -> None:
    assert only_line(rebus("models", "show", "No Such Name!")).startswith("error: name: ")
    assert only_line(rebus("runs", "watch", "nowhere/x")).startswith("error: name: 'nowhere/x' is not the name of")
    assert only_line(rebus("datasets", "show", "a/b/c/d")).startswith("error: name: expected NAME, NAME/VERSION")


@pytest.mark.parametrize("url", ["ftp://host/x", "/no/scheme", "s3://", "file://host/x"])
def test_a_wrong_store_url_is_one_line(rebus: Command, url: str) -> None:
    line = only_line(rebus("models", "list", "--store", url))
    assert line == f"error: store: {url!r}: expected file:///absolute/folder or s3://bucket/prefix"


def test_a_store_that_cannot_be_made_is_one_line(rebus: Command, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    assert only_line(rebus("fsck", "--store", f"file://{tmp_path}/file/x")).startswith("error: store: cannot use")


def test_an_endpoint_where_nobody_listens_is_one_line(rebus: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = only_line(rebus("models", "list", "--endpoint", address))
    assert line.startswith(f"error: no Rebus server answers at {address}")


def test_an_endpoint_that_stays_silent_is_one_line(rebus: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.rebus.session.CONNECT_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        line = only_line(rebus("models", "list", "--endpoint", address))
    assert line.startswith(f"error: no Rebus server answers at {address}")


def test_an_endpoint_excludes_a_store(rebus: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    line = only_line(rebus("--endpoint", "localhost:1", "models", "list", "--store", "file:///x"))
    assert line == "error: --endpoint: a server has its own store; give --endpoint or --store, not both"
    monkeypatch.delenv("REBUS_STORE")
    monkeypatch.setenv("REBUS_ENDPOINT", "localhost:1")
    line = only_line(rebus("fsck"))
    assert line == "error: --store: this command reads the store itself; give the store of localhost:1"


def test_a_missing_picture_is_one_line(rebus: Command, tmp_path: Any) -> None:
    line = only_line(rebus("search", "--image", tmp_path / "none.png"))
    assert line == f"error: --image: cannot read {tmp_path}/none.png: no such file or directory"
    (tmp_path / "empty.png").write_bytes(b"")
    line = only_line(rebus("generate", "what?", "--image", tmp_path / "empty.png"))
    assert line == f"error: --image: {tmp_path}/empty.png has 0 bytes; expected 1 to 33554432"


def test_wrong_usage_has_exit_code_2(rebus: Command) -> None:
    assert rebus("models", "list", "--no-such-option").exit_code == 2
    assert rebus("no-such-command").exit_code == 2


def test_an_unexpected_error_says_how_to_see_more() -> None:
    assert one_line(KeyError("x")) == "error: KeyError: 'x' (an unexpected error; --debug shows the traceback)"


def test_debug_shows_the_traceback(rebus: Command) -> None:
    result = rebus("models", "show", "nothing", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
