"""Settings from the command line: ``--set a.b=3`` into nested values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from rebus.errors import invalid


def pairs(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    """``["a=b"]`` as pairs; an error names the option where one has no ``=``."""
    found: list[tuple[str, str]] = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise invalid(option, f"expected key=value, found {text!r}")
        found.append((key, value))
    return found


def overlay(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Changes ``values`` in place by ``path.to.key=value`` and returns them.

    Values are read as YAML (``3``, ``true``, ``[1, 2]``); numbers in a path are positions in a list. Whether a key
    exists is not decided here: the service checks the whole recipe and names the nearest valid key.
    """
    for path, text in pairs(changes, "--set"):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise invalid("--set", f"{path}: {text!r} is not YAML; quote it") from None
        *parents, last = path.split(".")
        _assign(_descend(values, parents, path), last, value, path)
    return values


def _descend(node: Any, keys: Sequence[str], path: str) -> Any:
    for key in keys:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[_position(node, key, path)]
    return node


def _assign(node: Any, key: str, value: Any, path: str) -> None:
    if isinstance(node, dict):
        node[key] = value
    else:
        node[_position(node, key, path)] = value


def _position(node: Any, key: str, path: str) -> int:
    if not isinstance(node, list):
        raise invalid("--set", f"{path}: {key!r} lies below a plain value ({node!r})")
    if not (key.isdigit() and int(key) < len(node)):
        raise invalid("--set", f"{path}: expected a position from 0 to {len(node) - 1}, found {key!r}")
    return int(key)
