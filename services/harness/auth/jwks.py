"""Public keys that JSON Web Tokens are signed with: a JWK set (RFC 7517) from a file or from a URL."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from rebus.errors import InvalidArgumentError, UnavailableError, invalid
from rebus.watched import MAX_FILE_BYTES, Watched
from services.harness.address import is_loopback

FIELD = "oidc.jwks"
MAX_KEYS = 100
MIN_RSA_BITS = 2048
FETCH_SECONDS = 5.0
# Keys that could not be read anew for this long are used no more.
MAX_STALE_SECONDS = 24 * 3600.0
# Never symmetric ones: whoever knows such a key to check a token could also sign one.
KEY_TYPES = ("RSA", "EC", "OKP")

log = logging.getLogger("rebus.auth")


class KeySet:
    """Public keys by their id."""

    def __init__(self, keys: dict[str, dict[str, Any]]) -> None:
        self._keys = keys
        self._built: dict[tuple[str, str], jwt.PyJWK | None] = {}

    def __contains__(self, kid: str) -> bool:
        return kid in self._keys

    def get(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """The key of that id, if it is one for that algorithm."""
        if kid not in self._keys:
            return None
        if (kid, algorithm) not in self._built:
            self._built[kid, algorithm] = _key(self._keys[kid], algorithm)
        return self._built[kid, algorithm]


class KeySource(Protocol):
    """Where keys come from."""

    async def find(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """The key of that id, if there is one and it is for that algorithm."""
        ...


class FileKeys:
    """Keys of a file, which is read again when it changes."""

    def __init__(self, path: Path, *, interval: float) -> None:
        self._keys = Watched([path], parse, field=FIELD, interval=interval)

    async def find(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        return self._keys.value.get(kid, algorithm)


class UrlKeys:
    """Keys behind a URL, kept for ``ttl`` seconds and read again at once when a token names one that is not there.

    Whatever asks, the URL is called at most every ``min_refresh`` seconds and by one call at a time, so that tokens
    with invented key ids cannot turn this server against the identity provider.
    """

    def __init__(
        self, url: str, *, ttl: float, min_refresh: float, fetch: Callable[[str], bytes] | None = None
    ) -> None:
        self._url = url
        self._ttl = ttl
        self._min_refresh = min_refresh
        self._fetch = fetch or fetch_url
        self._keys = KeySet({})
        self._fetched_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None

    async def find(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        age = time.monotonic() - self._fetched_at
        if age > MAX_STALE_SECONDS or kid not in self._keys:
            await self._refresh()
        elif age > self._ttl and (self._background is None or self._background.done()):
            # Nobody waits for a key that is known: an identity provider that is down stops no caller.
            self._background = asyncio.create_task(self._refresh())
        if time.monotonic() - self._fetched_at > MAX_STALE_SECONDS:
            raise UnavailableError("the identity provider's keys cannot be read")
        return self._keys.get(kid, algorithm)

    async def _refresh(self) -> None:
        async with self._lock:
            if time.monotonic() - self._tried_at < self._min_refresh:
                return
            self._tried_at = time.monotonic()
            try:
                self._keys = parse(await asyncio.to_thread(self._fetch, self._url))
                self._fetched_at = time.monotonic()
            except (OSError, HTTPException, InvalidArgumentError) as error:
                log.error("keys of %s cannot be read, those read before stay: %s", self._url, error)


def source(location: str, *, ttl: float, min_refresh: float, interval: float) -> KeySource:
    """Keys of a URL (https; http from this machine alone) or of a file."""
    parts = urlsplit(location)
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return UrlKeys(location, ttl=ttl, min_refresh=min_refresh)
    if "://" in location:
        raise invalid(FIELD, f"expected a file or an https URL, found {location!r}")
    return FileKeys(Path(location), interval=interval)


def parse(content: bytes) -> KeySet:
    """The usable keys of a JWK set; others are left out with a warning."""
    try:
        keys = json.loads(content)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise invalid(FIELD, 'expected a JSON object with the list "keys"') from None
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise invalid(FIELD, f"expected a list of at most {MAX_KEYS} keys")
    usable: dict[str, dict[str, Any]] = {}
    for i, key in enumerate(keys):
        reason = _unusable(key)
        if reason:
            log.warning("%s: keys[%d] is left out: %s", FIELD, i, reason)
        else:
            usable[key["kid"]] = key
    if not usable:
        raise invalid(FIELD, "the set has no usable key")
    return KeySet(usable)


def _unusable(key: Any) -> str:
    """Why a key cannot check signatures; empty if it can."""
    if not isinstance(key, dict) or not isinstance(key.get("kid"), str):
        return "it has no id (kid)"
    if key.get("kty") not in KEY_TYPES:
        return f"its type (kty) is none of {', '.join(KEY_TYPES)}"
    if key.get("use", "sig") != "sig":
        return "it is not for signatures (use)"
    return ""


def _key(values: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    """The key made ready for an algorithm; None where it is not one for it."""
    if values.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK(values, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS:
        log.warning("%s: an RSA key of %d bits is left out: expected %d", FIELD, key.key.key_size, MIN_RSA_BITS)
        return None
    return key


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: it could lead away from https."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def fetch_url(url: str) -> bytes:
    """The body of a URL, bounded in size and time. Blocks."""
    handlers: list[Any] = [_NoRedirect()]
    if is_loopback(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    with opener.open(url, timeout=FETCH_SECONDS) as response:
        content = response.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise invalid(FIELD, f"the answer of {url} is larger than {MAX_FILE_BYTES} bytes")
    return content
