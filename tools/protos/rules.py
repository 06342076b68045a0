"""Validation rules of fields in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from buf.validate import validate_pb2
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# How a rule reads, by its name in `buf.validate`.
_WORDS: dict[str, Callable[[Any], str]] = {
    "min_len": lambda n: f"at least {n} long",
    "max_len": lambda n: f"at most {n} long",
    "pattern": lambda pattern: f"matches `{pattern}`",
    "min_items": lambda n: f"at least {n} of them",
    "max_items": lambda n: f"at most {n} of them",
    "min_pairs": lambda n: f"at least {n} of them",
    "max_pairs": lambda n: f"at most {n} of them",
    "gte": lambda n: f"≥ {n:.10g}",
    "gt": lambda n: f"> {n:.10g}",
    "lte": lambda n: f"≤ {n:.10g}",
    "lt": lambda n: f"< {n:.10g}",
}


def rules_of(options: descriptor_pb2.FieldOptions) -> Any:
    """The ``buf.validate.FieldRules`` of a field."""
    return options.Extensions[validate_pb2.field]  # pyright: ignore[reportArgumentType]


def behaviours_of(options: descriptor_pb2.FieldOptions) -> list[str]:
    """The AIP-203 behaviours of a field, e.g. ``OUTPUT_ONLY``."""
    extension: Any = field_behavior_pb2.field_behavior
    return [field_behavior_pb2.FieldBehavior.Name(number) for number in options.Extensions[extension]]


def words(field: descriptor_pb2.FieldDescriptorProto) -> str:
    """What a field's options ask of its value; empty where they ask nothing."""
    parts = [behaviour.lower().replace("_", " ") for behaviour in behaviours_of(field.options)]
    rules = rules_of(field.options)
    if rules.required and "required" not in parts:
        parts.append("required")
    return "; ".join(parts + [part for part in _of_rules(rules) if part != "required"])


def _of_rules(rules: Message) -> list[str]:
    return [part for descriptor, value in rules.ListFields() for part in _of_rule(descriptor, value)]


def _of_rule(descriptor: FieldDescriptor, value: Any) -> list[str]:
    name = descriptor.name
    if name in _WORDS:
        return [_WORDS[name](value)]
    if name in ("items", "keys", "values"):
        return [f"each{'' if name == 'items' else ' ' + name[:-1]} {part}" for part in _of_rules(value)]
    if name == "not_in":
        return [f"not {', '.join(map(str, value))}"]
    if name == "defined_only":
        return ["a defined value"] if value else []
    if isinstance(value, Message):
        return _of_rules(value)
    return [name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}"]
