"""JSON Web Tokens of an OpenID Connect identity provider."""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from rebus.errors import UnauthenticatedError, invalid
from rebus.v1.options_pb2 import Access
from rebus.watched import RELOAD_SECONDS
from services.harness.auth.jwks import source
from services.harness.auth.principal import ROLES, Principal

# Asymmetric alone: `none` has no signature, and an HS* one could be made with the public key.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
MAX_SUBJECT = 256
# Tokens remembered as good.
MAX_VERIFIED = 1024

_REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidIssuerError: "it is from another issuer",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.MissingRequiredClaimError: "it lacks one of the claims exp, iss, aud, sub",
}


@dataclass(frozen=True)
class OidcConfig:
    """Whose tokens a server takes, and how it reads a role from them."""

    # Claim `iss`, to the letter.
    issuer: str
    # One of the claim `aud`.
    audience: str
    # The provider's public keys: a file, or an https URL.
    jwks: str
    # The claim that holds a role or a list of them; dots lead into nested claims (`realm_access.roles`).
    role_claim: str = "role"
    # Signature algorithms that are taken.
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    # How far the clocks may be apart, for `exp` and `nbf`.
    leeway_seconds: float = 30.0
    # How long keys of a URL are kept before they are read again.
    jwks_ttl_seconds: float = 300.0
    # Least time between two reads of the URL, whatever asks for it.
    jwks_min_refresh_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("issuer", "audience", "jwks", "role_claim"):
            if not getattr(self, name):
                raise invalid(f"oidc.{name}", "is required")
        unknown = [name for name in self.algorithms if name not in ALGORITHMS]
        if unknown or not self.algorithms:
            raise invalid("oidc.algorithms", f"expected some of {', '.join(ALGORITHMS)}, found {unknown}")
        for name in ("leeway_seconds", "jwks_ttl_seconds", "jwks_min_refresh_seconds"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise invalid(f"oidc.{name}", f"expected seconds, 0 or more, found {getattr(self, name)}")


@dataclass(frozen=True)
class _Verified:
    """A token that was found good: whose it is, the key that signed it, and when it ends (seconds since 1970)."""

    principal: Principal
    algorithm: str
    kid: str
    key: jwt.PyJWK
    expires: float


class JwtVerifier:
    """Checks a token's signature, issuer, audience and times.

    A signature takes longer to check than most calls to answer, so tokens that were found good are remembered until
    they expire, or until their key is withdrawn or read anew.
    """

    def __init__(self, config: OidcConfig, *, interval: float = RELOAD_SECONDS) -> None:
        self._config = config
        self._keys = source(
            config.jwks,
            ttl=config.jwks_ttl_seconds,
            min_refresh=config.jwks_min_refresh_seconds,
            interval=interval,
        )
        # By the token's SHA-256, oldest first.
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def verify(self, token: str) -> Principal:
        """Whose token it is. Raises ``UnauthenticatedError`` that says what is wrong and shows nothing of the token."""
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is not None:
            still = await self._keys.find(known.kid, known.algorithm)
            if still is known.key and time.time() < known.expires:
                return known.principal
        verified = await self._verify(token)
        self._verified[digest] = verified
        while len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)
        return verified.principal

    async def _verify(self, token: str) -> _Verified:
        algorithm, kid = self._header(token)
        key = await self._keys.find(kid, algorithm)
        if key is None:
            raise UnauthenticatedError("the JWT is not valid: the key it names is not known for its algorithm")
        claims = self._claims(token, key, algorithm)
        subject: str = claims["sub"]
        # It goes into logs: no line breaks.
        if not (0 < len(subject) <= MAX_SUBJECT and subject.isprintable()):
            raise UnauthenticatedError(f"the JWT is not valid: expected a subject of at most {MAX_SUBJECT} characters")
        principal = Principal(f"oidc:{subject}", highest_role(claims, self._config.role_claim))
        return _Verified(principal, algorithm, kid, key, float(claims["exp"]) + self._config.leeway_seconds)

    def _claims(self, token: str, key: jwt.PyJWK, algorithm: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._config.issuer,
                audience=self._config.audience,
                leeway=self._config.leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.InvalidTokenError as error:
            reason = next((text for cls, text in _REASONS.items() if isinstance(error, cls)), "it is malformed")
            raise UnauthenticatedError(f"the JWT is not valid: {reason}") from None

    def _header(self, token: str) -> tuple[str, str]:
        """The algorithm and the key's id, still unproved."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise UnauthenticatedError("the token is not known, and it is no JWT") from None
        if header.get("alg") not in self._config.algorithms:
            allowed = ", ".join(self._config.algorithms)
            raise UnauthenticatedError(f"the JWT is not valid: its algorithm is none of {allowed}")
        if not isinstance(header.get("kid"), str):
            raise UnauthenticatedError("the JWT is not valid: it names no key (kid)")
        return header["alg"], header["kid"]


def highest_role(claims: Mapping[str, Any], path: str) -> Access.Role:
    """The highest of our roles that a claim names, alone or among others; ``ROLE_UNSPECIFIED`` if it names none."""
    value: Any = claims.get(path)
    if value is None:
        value = claims
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    names = value if isinstance(value, list) else [value]
    return max((ROLES[n] for n in names if isinstance(n, str) and n in ROLES), default=Access.ROLE_UNSPECIFIED)
