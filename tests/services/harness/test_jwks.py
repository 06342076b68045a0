"""Signing keys: of a file and of a URL, rotated, with an identity provider that is slow, gone or hostile."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from jwt.warnings import InsecureKeyLengthWarning

from rebus.errors import InvalidArgumentError, RebusError, UnauthenticatedError, UnavailableError
from rebus.v1.options_pb2 import Access
from services.harness.auth.jwks import parse
from services.harness.auth.oidc import JwtVerifier, OidcConfig, highest_role
from services.harness.auth.principal import Principal
from tests.services.harness.identity import AUDIENCE, ISSUER, SigningKey, jwk_set


class Provider:
    """An identity provider's HTTP server."""

    def __init__(self) -> None:
        self.content = b""
        self.status = 200
        self.fetches = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.fetches += 1
                self.send_response(provider.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(provider.content)))
                self.end_headers()
                self.wfile.write(provider.content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"


@pytest.fixture
def provider() -> Iterator[Provider]:
    started = Provider()
    thread = threading.Thread(target=started.server.serve_forever)
    thread.start()
    yield started
    started.server.shutdown()
    thread.join()
    started.server.server_close()


def verifier(jwks: str, *, ttl: float = 3600, min_refresh: float = 0, **more: Any) -> JwtVerifier:
    config = OidcConfig(ISSUER, AUDIENCE, jwks, jwks_ttl_seconds=ttl, jwks_min_refresh_seconds=min_refresh, **more)
    return JwtVerifier(config, interval=0)


def outcomes(checks: JwtVerifier, *tokens: str) -> list[str]:
    """The principal's name, or the error's reason, of each token in turn."""

    async def all_of_them() -> list[str]:
        return [await _outcome(checks, token) for token in tokens]

    return asyncio.run(all_of_them())


async def _outcome(checks: JwtVerifier, token: str) -> str:
    try:
        return (await checks.verify(token)).name
    except RebusError as error:
        return error.reason


def test_a_rotated_key_is_fetched_when_a_token_names_it(provider: Provider) -> None:
    old, new = SigningKey("old"), SigningKey("new")
    provider.content = jwk_set(old)
    checks = verifier(provider.url)

    async def rotation() -> list[str]:
        before = [await _outcome(checks, key.sign()) for key in (old, old, new)]
        assert provider.fetches == 2  # the first, and one for the unknown key
        provider.content = jwk_set(new)
        return before + [await _outcome(checks, key.sign()) for key in (new, new, old)]

    alice, refused = "oidc:alice", "UNAUTHENTICATED"
    assert asyncio.run(rotation()) == [alice, alice, refused, alice, alice, refused]


def test_invented_key_ids_do_not_reach_the_provider(provider: Provider) -> None:
    key = SigningKey("known")
    provider.content = jwk_set(key)
    checks = verifier(provider.url, min_refresh=3600)
    forged = [SigningKey(f"invented-{i}").sign() for i in range(20)]
    assert outcomes(checks, key.sign(), *forged, key.sign()) == ["oidc:alice", *["UNAUTHENTICATED"] * 20, "oidc:alice"]
    assert provider.fetches == 1


def test_many_calls_at_once_fetch_once(provider: Provider) -> None:
    key = SigningKey("known")
    provider.content = jwk_set(key)
    checks = verifier(provider.url, min_refresh=3600)

    async def at_once() -> list[str]:
        return await asyncio.gather(*(_outcome(checks, key.sign()) for _ in range(16)))

    assert asyncio.run(at_once()) == ["oidc:alice"] * 16
    assert provider.fetches == 1


def test_old_keys_are_read_again_and_stay_while_the_provider_is_away(provider: Provider) -> None:
    key = SigningKey("known")
    provider.content = jwk_set(key)
    checks = verifier(provider.url, ttl=0)

    async def calls() -> None:
        assert await _outcome(checks, key.sign()) == "oidc:alice"
        provider.status = 503
        for fetches in (2, 3):
            assert await _outcome(checks, key.sign()) == "oidc:alice"
            while provider.fetches < fetches or not _idle(checks):
                await asyncio.sleep(0.01)

    asyncio.run(calls())


def _idle(checks: JwtVerifier) -> bool:
    task = checks._keys._background  # pyright: ignore[reportAttributeAccessIssue]
    return task is None or task.done()


@pytest.mark.parametrize(("status", "content"), [(503, b""), (302, b""), (200, b"{}"), (200, b'{"keys": []}')])
def test_without_keys_the_answer_is_unavailable(provider: Provider, status: int, content: bytes) -> None:
    provider.status, provider.content = status, content
    with pytest.raises(UnavailableError, match="keys cannot be read"):
        asyncio.run(verifier(provider.url, min_refresh=3600).verify(SigningKey("any").sign()))
    assert provider.fetches == 1  # a redirect is not followed


def test_keys_of_a_file_are_rotated(tmp_path: Path) -> None:
    old, new, path = SigningKey("old"), SigningKey("new"), tmp_path / "jwks.json"
    path.write_bytes(jwk_set(old))
    checks = verifier(str(path))
    assert outcomes(checks, old.sign(), new.sign()) == ["oidc:alice", "UNAUTHENTICATED"]
    path.write_bytes(jwk_set(old, new))
    assert outcomes(checks, old.sign(), new.sign()) == ["oidc:alice", "oidc:alice"]
    path.write_bytes(jwk_set(new))
    assert outcomes(checks, old.sign(), new.sign()) == ["UNAUTHENTICATED", "oidc:alice"]


def test_rsa_keys_work_and_short_ones_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, short, path = SigningKey.rsa("good"), SigningKey.rsa("short", 1024), tmp_path / "jwks.json"
    path.write_bytes(jwk_set(good, short))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)
        weak = short.sign()
    assert outcomes(verifier(str(path)), good.sign(), weak) == ["oidc:alice", "UNAUTHENTICATED"]
    assert "an RSA key of 1024 bits is left out: expected 2048" in caplog.text


def test_a_key_serves_its_own_algorithm_only(tmp_path: Path) -> None:
    key, path = SigningKey("one"), tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [{**key.public_jwk, "alg": "ES384"}]}))
    with pytest.raises(UnauthenticatedError, match="is not known for its algorithm"):
        asyncio.run(verifier(str(path)).verify(key.sign()))
    path.write_bytes(jwk_set(key))
    with pytest.raises(UnauthenticatedError, match="its algorithm is none of RS256$"):
        asyncio.run(verifier(str(path), algorithms=("RS256",)).verify(key.sign()))


def test_symmetric_keys_are_left_out() -> None:
    with pytest.raises(InvalidArgumentError, match="no usable key"):
        parse(b'{"keys": [{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]}')


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [1]}', b"[" * 100_000])
def test_what_is_no_key_set_is_an_error(content: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="^oidc.jwks: "):
        parse(content)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"issuer": ""}, "oidc.issuer"),
        ({"audience": ""}, "oidc.audience"),
        ({"algorithms": ("RS256", "HS256")}, "oidc.algorithms"),
        ({"algorithms": ("none",)}, "oidc.algorithms"),
        ({"algorithms": ()}, "oidc.algorithms"),
        ({"leeway_seconds": -1.0}, "oidc.leeway_seconds"),
        ({"jwks_ttl_seconds": float("nan")}, "oidc.jwks_ttl_seconds"),
        ({"jwks": "http://identity.example/keys"}, "oidc.jwks"),
        ({"jwks": "ftp://identity.example/keys"}, "oidc.jwks"),
        ({"jwks": "/no/such/file"}, "oidc.jwks"),
    ],
)
def test_wrong_settings_name_their_field(values: dict[str, Any], field: str) -> None:
    settings = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": "https://identity.example/keys", **values}
    with pytest.raises(InvalidArgumentError) as caught:
        JwtVerifier(OidcConfig(**settings))
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("claims", "path", "role"),
    [
        ({"role": "editor"}, "role", Access.EDITOR),
        ({"roles": ["viewer", "operator", "other"]}, "roles", Access.OPERATOR),
        ({"realm_access": {"roles": ["editor"]}}, "realm_access.roles", Access.EDITOR),
        ({"https://x.example/role": "viewer"}, "https://x.example/role", Access.VIEWER),
        ({"role": "root"}, "role", Access.ROLE_UNSPECIFIED),
        ({"role": ["Editor", 3, None, {}]}, "role", Access.ROLE_UNSPECIFIED),
        ({"role": {"viewer": 1}}, "role", Access.ROLE_UNSPECIFIED),
        ({}, "a.b.c", Access.ROLE_UNSPECIFIED),
    ],
)
def test_the_role_comes_from_a_claim(claims: dict[str, Any], path: str, role: Access.Role) -> None:
    assert highest_role(claims, path) == role


def test_a_token_that_was_good_is_checked_again_when_it_may_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, path, now = SigningKey("one"), tmp_path / "jwks.json", time.time()
    path.write_bytes(jwk_set(key))
    checks = verifier(str(path), leeway_seconds=0.0)
    token, lasting = key.sign(exp=int(now) + 100), key.sign()
    decoded: list[str] = []
    decode = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda token, *a, **k: decoded.append(token) or decode(token, *a, **k))
    assert outcomes(checks, token, token, lasting, lasting) == ["oidc:alice"] * 4
    assert decoded == [token, lasting]
    forged = token.rpartition(".")[0] + "." + lasting.rpartition(".")[2]
    assert outcomes(checks, forged) == ["UNAUTHENTICATED"]
    path.write_bytes(jwk_set(SigningKey("one")))  # the same id, another key
    assert outcomes(checks, token) == ["UNAUTHENTICATED"]
    path.write_bytes(jwk_set(key))
    assert outcomes(checks, token) == ["oidc:alice"]
    monkeypatch.setattr("services.harness.auth.oidc.time", SimpleNamespace(time=lambda: now + 101))
    decoded.clear()
    outcomes(checks, token)
    assert decoded == [token]  # PyJWT, whose clock is the true one, is asked again
    monkeypatch.setattr("services.harness.auth.oidc.MAX_VERIFIED", 2)
    outcomes(checks, *(key.sign(sub=f"user-{i}") for i in range(5)))
    assert len(checks._verified) == 2


def test_the_principal_says_where_it_is_known_from(tmp_path: Path) -> None:
    key, path = SigningKey("one"), tmp_path / "jwks.json"
    path.write_bytes(jwk_set(key))
    checks = verifier(str(path), role_claim="groups")
    principal = asyncio.run(checks.verify(key.sign(sub="ci", groups=["editor"])))
    assert principal == Principal("oidc:ci", Access.EDITOR)
    for subject in ("", "x" * 257, "two\nlines"):
        with pytest.raises(UnauthenticatedError, match="a subject of at most 256"):
            asyncio.run(checks.verify(key.sign(sub=subject)))
    with pytest.raises(UnauthenticatedError, match="it is malformed"):
        asyncio.run(checks.verify(key.sign(sub=["a"])))
