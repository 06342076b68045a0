"""``rebus tokens create``, and commands that call a server which asks for a token."""

from __future__ import annotations

from pathlib import Path

import pytest

from rebus.store import Store
from services.harness.auth import Security, tokens
from services.harness.embedded import hosted
from tests.tools.rebus.conftest import Command


def test_a_token_is_shown_once_and_its_digest_kept(rebus: Command, tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    done = rebus("tokens", "create", "ci", "--role", "editor", "--file", path)
    token = done.stdout.strip()
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1)
    assert token not in done.stderr
    assert token not in path.read_text()
    found = tokens.TokenFile(path).find(token)
    assert found is not None
    assert found.name == "token:ci"
    again = rebus("tokens", "create", "ci", "--role", "editor", "--file", path)
    assert (again.exit_code, again.stdout) == (1, "")


def test_without_a_file_its_line_is_shown(rebus: Command) -> None:
    done = rebus("tokens", "create", "ci", "--role", "viewer")
    (entry,) = tokens.parse(done.stderr.partition("\n")[2].encode())
    assert (entry.name, entry.role, entry.sha256) == ("ci", "viewer", tokens.digest(done.stdout.strip()))


def test_a_bad_name_is_one_line(rebus: Command) -> None:
    done = rebus("tokens", "create", "A B", "--role", "viewer")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "name: expected at most 63 lower-case letters" in done.stderr


def test_a_command_presents_the_token_of_its_environment(
    rebus: Command, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, entry = tokens.create("ci", "viewer")
    tokens.append(tmp_path / "tokens.yaml", entry)
    with hosted(store.url, ["ingest"], security=Security(tokens=tmp_path / "tokens.yaml")) as endpoint:
        monkeypatch.delenv("REBUS_STORE")
        refused = rebus("--endpoint", endpoint, "datasets", "list")
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert "error: no credentials" in refused.stderr
        monkeypatch.setenv("REBUS_TOKEN", token)
        assert rebus("--endpoint", endpoint, "datasets", "list").exit_code == 0
        deleted = rebus("--endpoint", endpoint, "datasets", "delete", "x", "--yes")
        assert "DeleteDataset needs the role operator; token:ci has viewer" in deleted.stderr


def test_services_of_its_own_are_not_shown_the_environments_credentials(
    rebus: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They speak no TLS, whatever the environment says of a server elsewhere."""
    monkeypatch.setenv("REBUS_TLS_CA", "/no/such/file")
    monkeypatch.setenv("REBUS_TOKEN", "for a server elsewhere")
    assert rebus("datasets", "list").exit_code == 0
