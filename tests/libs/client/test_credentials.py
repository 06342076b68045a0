"""What a client presents, and what it refuses to."""

from __future__ import annotations

from pathlib import Path

import pytest

from rebus.client import Client, Credentials
from rebus.client.credentials import Bearer
from rebus.errors import InvalidArgumentError

CA, CERT, KEY = Path("ca.pem"), Path("cert.pem"), Path("key.pem")


def test_the_environment_says_all_of_it() -> None:
    variables = {
        "REBUS_TOKEN_FILE": "token",
        "REBUS_TLS_CA": "ca.pem",
        "REBUS_TLS_CERT": "cert.pem",
        "REBUS_TLS_KEY": "key.pem",
        "REBUS_TLS_SERVER_NAME": "rebus.example",
        "REBUS_INSECURE": "1",
        "REBUS_TOKEN": "",
    }
    assert Credentials.from_environment(variables) == Credentials(
        token_file=Path("token"), ca=CA, cert=CERT, key=KEY, server_name="rebus.example", insecure=True
    )
    assert Credentials.from_environment({}) == Credentials()
    for credentials in (Credentials(), Credentials("a"), Credentials.from_environment(variables)):
        assert Credentials.from_environment({**variables, **credentials.variables()}) == credentials
    assert Credentials.from_environment({"REBUS_TLS": "1"}).encrypted


@pytest.mark.parametrize(
    ("variables", "field"),
    [
        ({"REBUS_TOKEN": "a", "REBUS_TOKEN_FILE": "b"}, "REBUS_TOKEN"),
        ({"REBUS_TLS_CA": "a", "REBUS_TLS_CERT": "b"}, "REBUS_TLS_CERT"),
        ({"REBUS_TLS_CERT": "a", "REBUS_TLS_KEY": "b"}, "REBUS_TLS"),
        ({"REBUS_TLS_SERVER_NAME": "a"}, "REBUS_TLS"),
        ({"REBUS_TLS": "yes"}, "REBUS_TLS"),
        ({"REBUS_TOKEN": "secret\n"}, "REBUS_TOKEN"),
        ({"REBUS_TOKEN": "secret\u00e9"}, "REBUS_TOKEN"),
    ],
)
def test_what_does_not_go_together_names_its_variable(variables: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Credentials.from_environment(variables)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert "secret" not in str(caught.value)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Credentials(token="secret"))


@pytest.mark.parametrize("endpoint", ["rebus.example:8080", "10.0.0.1:8080", "[2001:db8::1]:8080"])
def test_a_token_does_not_go_to_another_machine_in_clear(endpoint: str) -> None:
    with pytest.raises(InvalidArgumentError, match="will not send a token to .* in clear; set REBUS_TLS_CA"):
        Client(endpoint, credentials=Credentials(token="a"))
    Client(endpoint, credentials=Credentials(token="a", insecure=True)).close()
    Client(endpoint, credentials=Credentials(token="a", tls=True)).close()
    Client(endpoint, credentials=Credentials()).close()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "unix:/run/rebus.sock"])
def test_a_token_may_stay_on_this_machine_in_clear(endpoint: str) -> None:
    Client(endpoint, credentials=Credentials(token="a")).close()


def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    bearer = Bearer(Credentials(token_file=path), interval=0)
    assert bearer.metadata() == (("authorization", "Bearer first"),)
    path.write_text("other token\n")
    assert bearer.metadata() == (("authorization", "Bearer first"),)  # a space: not usable
    path.write_text("second\n")
    assert bearer.metadata() == (("authorization", "Bearer second"),)


def test_a_missing_or_empty_token_file_names_its_variable(tmp_path: Path) -> None:
    for name in ("missing", "empty"):
        (tmp_path / "empty").touch()
        with pytest.raises(InvalidArgumentError, match="^REBUS_TOKEN_FILE: "):
            Client("127.0.0.1:1", credentials=Credentials(token_file=tmp_path / name))


def test_missing_roots_name_their_variable(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="^REBUS_TLS_CA: cannot read"):
        Client("127.0.0.1:1", credentials=Credentials(ca=tmp_path / "missing"))
