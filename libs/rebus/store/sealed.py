"""JSON that carries its own SHA-256, so that one flipped byte is noticed wherever the bytes are read."""

from __future__ import annotations

import json
from typing import Any

from rebus.config import canonical_json, digest
from rebus.errors import DataLossError


def seal(content: dict[str, Any]) -> bytes:
    """``{"content": ..., "sha256": ...}`` in canonical form."""
    return canonical_json({"content": content, "sha256": digest(content)})


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The content; ``DataLossError`` naming ``where`` if any byte differs from what was sealed."""
    try:
        content = json.loads(data)["content"]
        intact = seal(content) == data
    except (ValueError, KeyError, TypeError, RecursionError):
        intact, content = False, {}
    if not intact:
        raise DataLossError(f"{where}: stored bytes were altered", metadata={"path": where})
    return content
