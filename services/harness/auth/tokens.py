"""Bearer tokens: random, known to the server by their SHA-256 alone.

A token holds 256 random bits, so nobody can search for the one behind a digest; a slow key derivation, as passwords
need, would only slow down every call.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from rebus.config import build
from rebus.errors import AlreadyExistsError, invalid
from rebus.watched import RELOAD_SECONDS, Watched, read_bounded
from services.harness.auth.principal import ROLES, Principal

# Lets scanners of repositories and logs recognise a token that leaked.
PREFIX = "rebus_"
TOKEN_BYTES = 32
MAX_TOKENS = 1000
FIELD = "tokens"

RoleName = Literal["viewer", "editor", "operator"]


@dataclass(frozen=True)
class TokenEntry:
    """One line of the token file: whose token it is, what it may do, and its digest."""

    # Shown in the audit log: lower-case letters, digits, dots, dashes.
    name: str
    role: RoleName
    # SHA-256 of the token, in hex.
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", self.name):
            raise ValueError("name: expected at most 63 lower-case letters, digits, dots and dashes")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256: expected 64 lower-case hexadecimal digits")

    @property
    def line(self) -> str:
        """The entry as a line of the token file."""
        return f"- {{name: {self.name}, role: {self.role}, sha256: {self.sha256}}}\n"


def digest(token: str) -> str:
    """SHA-256 of a token, in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def create(name: str, role: str) -> tuple[str, TokenEntry]:
    """A new token, which is kept nowhere, and its entry."""
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    return token, build(TokenEntry, {"name": name, "role": role, "sha256": digest(token)}, where="token")


def append(path: Path, entry: TokenEntry) -> None:
    """Adds an entry to a token file, which is made if there is none. A reader sees the old file or the new."""
    content = read_bounded(path, FIELD) if path.exists() else b""
    if entry.name in {known.name for known in parse(content or b"[]")}:
        raise AlreadyExistsError(f"{path} has a token named {entry.name}; remove its line, or choose another name")
    if content and not content.endswith(b"\n"):
        content += b"\n"
    content += entry.line.encode()
    parse(content)  # the old part may be written in another style, to which no line can be added
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(mode=0o600)
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def parse(content: bytes) -> tuple[TokenEntry, ...]:
    """The entries of a token file: a YAML (or JSON) list. Errors name the entry and the field, and no content."""
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError):
        raise invalid(FIELD, "the token file is not valid YAML") from None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise invalid(FIELD, "expected a list of entries with name, role and sha256")
    if len(values) > MAX_TOKENS:
        raise invalid(FIELD, f"expected at most {MAX_TOKENS} entries, found {len(values)}; more users need OIDC")
    entries = tuple(build(TokenEntry, value, where=f"{FIELD}[{i}]") for i, value in enumerate(values))
    for field in ("name", "sha256"):
        if len({getattr(entry, field) for entry in entries}) < len(entries):
            raise invalid(FIELD, f"two entries have the same {field}")
    return entries


class TokenFile:
    """The tokens of a file, which is read again when it changes."""

    def __init__(self, path: Path, *, interval: float = RELOAD_SECONDS) -> None:
        self._known = Watched([path], _principals, field=FIELD, interval=interval)

    def find(self, token: str) -> Principal | None:
        """Whose token it is. The time taken tells nothing: every digest is compared, each in constant time."""
        presented, found = bytes.fromhex(digest(token)), None
        for known, principal in self._known.value:
            if hmac.compare_digest(known, presented):
                found = principal
        return found


def _principals(content: bytes) -> list[tuple[bytes, Principal]]:
    """Digests and whose tokens they are of."""
    return [(bytes.fromhex(e.sha256), Principal(f"token:{e.name}", ROLES[e.role])) for e in parse(content)]
