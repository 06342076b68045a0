"""Activations by transformers' names and by ours."""

from __future__ import annotations

from typing import Any

from rebus.errors import invalid

# ``gelu_new`` and ``gelu_pytorch_tanh`` are one function.
_OURS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu": "relu",
}
_THEIRS = {"silu": "silu", "gelu": "gelu", "gelu-tanh": "gelu_pytorch_tanh", "relu": "relu"}


def read_activation(name: str, *, field: str) -> Any:
    """Our name of an activation; raises ``InvalidArgumentError`` naming ``field`` for one that we have not."""
    if name not in _OURS:
        raise invalid(field, f"unknown activation {name!r}; known: {', '.join(_OURS)}")
    return _OURS[name]


def write_activation(name: str) -> str:
    """Transformers' name of one of ours."""
    return _THEIRS[name]
