"""Comments of the protos by the full name of what they describe, and the codes that a method's comment names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2
from google.rpc import code_pb2

from tools.protos.compile import is_ours

# Codes that any method may end with, for reasons that are none of its own; `protos/README.md` says which.
COMMON_CODES = frozenset(
    {
        "INVALID_ARGUMENT",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "CANCELLED",
        "UNAVAILABLE",
        "DATA_LOSS",
        "INTERNAL",
    }
)
_CODE = re.compile(rf"\b({'|'.join(name for name in list(code_pb2.Code.keys()) if name != 'OK')})\b")
# Field numbers by which source locations reach nested declarations, by the kind of declaration they lie in.
_INNER = {
    "file": {"service": 6, "message_type": 4, "enum_type": 5},
    "service": {"method": 2},
    "message_type": {"field": 2, "nested_type": 3, "enum_type": 4, "oneof_decl": 8},
    "enum_type": {"value": 2},
}
_KINDS = {"nested_type": "message_type"}


def comments(files: descriptor_pb2.FileDescriptorSet) -> dict[str, str]:
    """The leading comment of every declaration of our files, empty where there is none.

    Keys are full names; an enum's values are named below their enum (``rebus.v1.Tensor.DType.INT64``).
    """
    found: dict[str, str] = {}
    for file in (file for file in files.file if is_ours(file)):
        by_path = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for name, path in _declared(file, "file", file.package, ()):
            found[name] = " ".join(by_path.get(path, "").split())
    return found


def _declared(parent: Any, kind: str, prefix: str, path: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for inner, number in _INNER.get(kind, {}).items():
        for index, declared in enumerate(getattr(parent, inner)):
            if inner == "nested_type" and declared.options.map_entry:
                continue
            if inner == "oneof_decl" and declared.name.startswith("_"):  # made by the compiler for `optional`
                continue
            name, place = f"{prefix}.{declared.name}", (*path, number, index)
            yield name, place
            yield from _declared(declared, _KINDS.get(inner, inner), name, place)


def codes(comment: str) -> list[str]:
    """The codes that a comment names, in its order."""
    return list(dict.fromkeys(_CODE.findall(comment)))


def documented_codes(files: descriptor_pb2.FileDescriptorSet) -> dict[str, frozenset[str]]:
    """All codes that each method, by full name, may end with."""
    texts = comments(files)
    methods = [
        f"{file.package}.{service.name}.{method.name}"
        for file in files.file
        if is_ours(file)
        for service in file.service
        for method in service.method
    ]
    return {name: COMMON_CODES | set(codes(texts[name])) for name in methods}
