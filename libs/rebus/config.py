"""Recipes and settings: YAML into typed dataclasses, validated whole before anything runs."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from rebus.errors import FieldViolation, InvalidArgumentError, invalid

T = TypeVar("T")
MAX_YAML_BYTES = 1 << 20
MAX_YAML_NODES = 100_000
MAX_YAML_DEPTH = 64
MAX_BASE_DEPTH = 8
_SCALARS = frozenset({str, int, float, bool, NoneType})
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def build(cls: type[T], values: Mapping[str, Any], *, where: str = "recipe") -> T:
    """Builds dataclass ``cls`` from plain values, checking every key and type.

    Raises ``InvalidArgumentError`` with one violation a bad field; an unknown key names the nearest valid one.
    """
    try:
        return _adapter(cls).validate_python(dict(values), strict=False)
    except ValidationError as error:
        violations = [_violation(cls, item, where) for item in error.errors(include_url=False)]
        message = "; ".join(f"{v.field}: {v.description}" for v in violations)
        raise InvalidArgumentError(message, violations=violations) from None


def _adapter(cls: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(_forbid_extra(cls))


def _forbid_extra(cls: type[T]) -> type[T]:
    """Pydantic reads this attribute of stdlib dataclasses; nested dataclasses get it too."""
    if dataclasses.is_dataclass(cls) and "__pydantic_config__" not in cls.__dict__:
        cls.__pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportAttributeAccessIssue]
        for hint in get_type_hints(cls).values():
            for part in (hint, *_flatten(hint)):
                if isinstance(part, type):
                    _forbid_extra(part)
    return cls


def _flatten(hint: Any) -> list[Any]:
    args = [a for a in get_args(hint) if a is not Ellipsis]
    return args + [inner for a in args for inner in _flatten(a)]


def _violation(cls: type, item: Any, where: str) -> FieldViolation:
    path = ".".join(str(part) for part in item["loc"])
    field = f"{where}.{path}" if path else where
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        valid = _keys_at(cls, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid) or 'none'}"
        return FieldViolation(field, f"unknown key; {hint}")
    if item["type"] == "missing":
        return FieldViolation(field, "is required")
    description = str(item["msg"]).removeprefix("Value error, ")
    return FieldViolation(field, f"{description} (found {_short(item.get('input'))})")


def _keys_at(hint: Any, path: tuple[Any, ...]) -> list[str]:
    """Valid keys of the dataclass reached from ``hint`` by ``path`` (list indices and mapping keys included)."""
    for part in path:
        hint = get_type_hints(hint).get(str(part)) if dataclasses.is_dataclass(hint) else _value_type(hint)
        if get_origin(hint) in (Union, UnionType):
            hint = _value_type(hint)
    return [f.name for f in dataclasses.fields(hint)] if dataclasses.is_dataclass(hint) else []


def _value_type(hint: Any) -> Any:
    """What a list, a mapping or an optional holds."""
    inner = [part for part in get_args(hint) if part not in (Ellipsis, NoneType)]
    return inner[-1] if inner else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def load_yaml(path: Path, *, _depth: int = 0) -> dict[str, Any]:
    """Reads a YAML mapping; ``base: other.yaml`` (beside it) is loaded first and its fields are overridden."""
    if not path.is_file():
        raise invalid("recipe", f"no such file: {path}")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise invalid("recipe", f"{path.name} is larger than {MAX_YAML_BYTES} bytes")
    values = parse_yaml(path.read_text(encoding="utf-8"), where=path.name)
    base = values.pop("base", None)
    if base is None:
        return values
    if _depth >= MAX_BASE_DEPTH or Path(str(base)).name != base:
        raise invalid("recipe.base", f"expected a file name beside {path.name}, at most {MAX_BASE_DEPTH} deep")
    return merge(load_yaml(path.parent / str(base), _depth=_depth + 1), values)


def parse_yaml(text: str, *, where: str = "recipe") -> dict[str, Any]:
    """Parses a YAML mapping; errors name ``where`` and the line."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date, a number too long, too deep
        raise invalid(where, f"not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise invalid(where, f"expected a mapping, found {type(values).__name__}")
    _check_plain(values, where)
    return values


def _check_plain(values: dict[str, Any], where: str) -> None:
    """Refuses what has no canonical JSON, and what aliases make endless or huge: YAML lets 1 kB stand for gigabytes."""
    pending: list[tuple[str, int, Any]] = [(where, 0, values)]
    for _ in range(MAX_YAML_NODES):
        if not pending:
            return
        path, depth, value = pending.pop()
        if depth > MAX_YAML_DEPTH:
            raise invalid(where, f"is nested more than {MAX_YAML_DEPTH} levels deep")
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise invalid(path, "expected keys that are text")
            pending += [(f"{path}.{key}", depth + 1, inner) for key, inner in value.items()]
        elif isinstance(value, list):
            pending += [(f"{path}[{index}]", depth + 1, inner) for index, inner in enumerate(value)]
        elif not _is_scalar(value):
            raise invalid(
                path,
                f"expected text, a truth value or a finite number of 64 bits, found another {type(value).__name__}",
            )
    raise invalid(where, f"holds more than {MAX_YAML_NODES} values, its aliases resolved")


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)  # half a pair has no UTF-8
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    return value is None or (isinstance(value, float) and math.isfinite(value))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it; mappings merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as JSON-serialisable values."""
    if type(value) in _SCALARS:  # the rest is rare in what is written a million times, and slower to tell
        return value
    if isinstance(value, (list, tuple)):  # not a union: that takes three times as long
        return [to_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def canonical_json(value: Any) -> bytes:
    """Sorted, compact, UTF-8 JSON: the bytes digests are taken over."""
    return _CANONICAL.encode(to_plain(value)).encode()


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
