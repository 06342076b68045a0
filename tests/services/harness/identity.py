"""An identity provider's part: signing keys, their public JWK set, and tokens good and bad."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://identity.example"
AUDIENCE = "rebus"
HOUR = 3600


@dataclass(frozen=True)
class SigningKey:
    """One key pair."""

    kid: str
    algorithm: str = "ES256"
    private: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)

    @classmethod
    def rsa(cls, kid: str, bits: int = 2048) -> SigningKey:
        return cls(kid, "RS256", rsa.generate_private_key(public_exponent=65537, key_size=bits))

    @property
    def public_jwk(self) -> dict[str, Any]:
        to_jwk = RSAAlgorithm.to_jwk if self.algorithm.startswith("RS") else ECAlgorithm.to_jwk
        return {**to_jwk(self.private.public_key(), as_dict=True), "kid": self.kid, "use": "sig"}

    def sign(self, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that is good unless ``claims`` or ``headers`` say otherwise; None drops a claim."""
        now = int(time.time())
        every = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + HOUR, "role": "operator", **claims}
        payload = {name: value for name, value in every.items() if value is not None}
        return jwt.encode(payload, self.private, algorithm=self.algorithm, headers={"kid": self.kid, **(headers or {})})


def jwk_set(*keys: SigningKey) -> bytes:
    """The JWK set of some keys."""
    return json.dumps({"keys": [key.public_jwk for key in keys]}).encode()


def unsigned(kid: str) -> str:
    """A token of algorithm ``none``."""
    key = SigningKey(kid)
    claims = jwt.decode(key.sign(), options={"verify_signature": False})
    return jwt.encode(claims, None, algorithm="none", headers={"kid": kid})


def signed_with_the_public_key(key: SigningKey) -> str:
    """The classic forgery: an HS256 token whose secret is the published key. Made by hand; PyJWT refuses to."""
    import base64
    import hashlib
    import hmac

    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    claims = jwt.decode(key.sign(), options={"verify_signature": False})
    head = json.dumps({"alg": "HS256", "typ": "JWT", "kid": key.kid}).encode()
    text = f"{part(head)}.{part(json.dumps(claims).encode())}"
    secret = json.dumps(key.public_jwk).encode()
    return f"{text}.{part(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"
