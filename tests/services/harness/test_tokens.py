"""The token file: made, checked, rotated under a running server."""

from __future__ import annotations

import stat
from pathlib import Path

import grpc
import pytest

from rebus.errors import AlreadyExistsError, InvalidArgumentError
from rebus.store import Store
from services.harness.auth import Security, tokens
from services.harness.embedded import hosted
from tests.services.harness.calls import bearer, call

LIST = "/rebus.v1.DatasetService/ListDatasets"
DIGEST = "0" * 64


def test_a_token_is_long_random_and_kept_as_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    made = [tokens.create(f"ci-{i}", "editor") for i in range(3)]
    for token, entry in made:
        tokens.append(path, entry)
        assert token.startswith("rebus_")
        assert len(token) == len("rebus_") + 43  # 256 bits in base64
        assert token not in path.read_text()
    assert len({token for token, _ in made}) == 3
    assert tokens.parse(path.read_bytes()) == tuple(entry for _, entry in made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file = tokens.TokenFile(path)
    found = file.find(made[1][0])
    assert found is not None
    assert found.name == "token:ci-1"
    assert file.find(made[1][0] + "x") is None


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    tokens.append(path, tokens.create("ci", "editor")[1])
    before = path.read_bytes()
    with pytest.raises(AlreadyExistsError, match="has a token named ci"):
        tokens.append(path, tokens.create("ci", "viewer")[1])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.yaml"]


def test_a_file_in_another_style_is_not_spoiled(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(f'[{{"name": "a", "role": "viewer", "sha256": "{DIGEST}"}}]')
    assert tokens.parse(path.read_bytes())[0].name == "a"
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError, match="not valid YAML"):
        tokens.append(path, tokens.create("b", "viewer")[1])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "field", "says"),
    [
        ("a: b", "tokens", "expected a list of entries"),
        ("- a", "tokens", "expected a list of entries"),
        ("- {", "tokens", "not valid YAML"),
        ("\xff\xfe", "tokens", "expected a list"),
        (f"- {{name: a, role: owner, sha256: {DIGEST!r}}}", "tokens[0].role", "'viewer', 'editor' or 'operator'"),
        (f"- {{name: A b, role: viewer, sha256: {DIGEST!r}}}", "tokens[0]", "name: expected at most 63"),
        ("- {name: a, role: viewer, sha256: abc}", "tokens[0]", "sha256: expected 64"),
        ("- {name: a, role: viewer}", "tokens[0].sha256", "is required"),
        ("- {name: a, role: viewer, sha: x}", "tokens[0].sha", "did you mean 'sha256'?"),
        (f"- &a {{name: a, role: viewer, sha256: {DIGEST!r}}}\n- *a", "tokens", "two entries have the same name"),
        ("[" + "{}," * 1001 + "]", "tokens", "expected at most 1000 entries"),
    ],
)
def test_a_wrong_file_names_its_field(content: str, field: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        tokens.parse(content.encode())
    assert field in {violation.field for violation in caught.value.violations}


def test_a_running_server_takes_new_tokens_and_drops_old_ones(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens.yaml"
    (first, first_entry), (second, second_entry) = (tokens.create(name, "viewer") for name in ("first", "second"))
    path.write_text(first_entry.line)
    security = Security(tokens=path, reload_seconds=0)
    with hosted(store.url, ["ingest"], security=security) as endpoint, grpc.insecure_channel(endpoint) as channel:

        def codes() -> list[grpc.StatusCode]:
            return [call(channel, LIST, bearer(token))[0] for token in (first, second)]

        admitted, refused = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
        assert codes() == [admitted, refused]
        path.write_text(first_entry.line + second_entry.line)
        assert codes() == [admitted, admitted]
        path.write_text(second_entry.line)
        assert codes() == [refused, admitted]
        path.write_text("- {name: half a li")
        assert codes() == [refused, admitted]
        assert "tokens.yaml changed and is not usable" in caplog.text
        path.write_text(first_entry.line)
        assert codes() == [admitted, refused]
