"""Hypothesis strategies of requests, built from the descriptors: valid, at the bounds, hostile, and damaged bytes.

Every request is drawn with a degree of hostility, from none (every field keeps its rules) to all; a tenth of them are
damaged as bytes afterwards. What only a domain knows (recipes, settings, pictures) comes from the pools below.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from hypothesis import strategies as st

from rebus import registry
from rebus.config import load_yaml
from tools.chaos.pictures import PICTURES
from tools.protos.rules import behaviours_of, rules_of

Draw = Callable[[st.SearchStrategy[Any]], Any]

# Stands for the id of the job that was created last; as long as an id, so that the driver can put one in its place.
NEWEST = "newest-00000000-0000-00000"
# Two characters that become four bytes which are no UTF-8.
BAD_TEXT, BAD_UTF8 = "ÿÿ", b"\xff\xfe\xc3\x28"
RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"

_TEXTS = [
    "",
    " ",
    "\0",
    "a\nb",
    "..",
    "../../etc/passwd",
    "/",
    "%s%n${x}",
    "'; drop",
    "²",
    "٣",
    "9" * 40,
    "-1",
    "a" * 300,
    "é" * 70,
    BAD_TEXT,
    "datasets/scenes/versions/0",
    "models/answers/versions/champion/x",
    "runs/" + "a" * 64,
    "💥" * 9,
]
_TOKENS = ["", "0", "1", "5", "1000", "MQ==", "ZG9uZQ==", "Zm9v", "////", "=", "²"]
_DATASET_IDS = ("a", "b", "c", "scenes")
_SPLITS = ["", "train", "test", "validation", "nope", "te'st"]
_URIS = [
    "",
    "{root}",
    "file://{root}",
    "{root}/notes.txt",
    "{root}/captions.csv",
    "{root}/none",
    "{root}/../x",
    "/",
    "x",
]
_HOSTILE_YAML = [
    "",
    "[]",
    "- 1",
    "1: 2",
    "? [1]\n: 2",
    "? {a: 1}\n: 2",
    "a: 2001-01-01",
    "a: 2001-01-01 10:00:00",
    "a: .nan",
    "a: .inf",
    "a: !!binary aGk=",
    "a: !!set {x}",
    "a: !!python/object/apply:os.getcwd []",
    "a: 1" + "0" * 5000,
    "a: 0x" + "f" * 5000,
    "a: &x [*x]",
    "a: &x {b: *x}",
    "a: &a [1,2,3,4,5,6,7,8,9]\n"
    + "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "[" * 3000,
    "{a: " * 500,
    "a: b: c",
    "\t",
    "a: 1\n---\nb: 2",
    "<<: {a: 1}",
    "name: x\x00",
    'a: "\\ud800"',
]
_NUMBERS = [0.0, -1.0, 1.0, 2.0, 0.5, 1e9, 1e18, 1e308, -1e308, math.nan, math.inf, -math.inf, 5e-324]
_INT_LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_INT_RULES = {
    FieldDescriptor.CPPTYPE_INT32: "int32",
    FieldDescriptor.CPPTYPE_INT64: "int64",
    FieldDescriptor.CPPTYPE_UINT32: "uint32",
    FieldDescriptor.CPPTYPE_UINT64: "uint64",
}
_MAX_DEPTH = 150
_DAMAGES = ("truncate", "flip", "insert", "repeat", "deep", "random")


@dataclass(frozen=True)
class World:
    """What exists in the store that the requests are sent to."""

    # Names that nothing may remove, since the other requests need them.
    names: Sequence[str]
    # Names that requests may remove.
    spare: Sequence[str]
    # A folder that ingestions may read.
    root: str

    def named(self, method: MethodDescriptor) -> list[str]:
        """Names that requests of this method may carry."""
        newest = [
            f"{collection}/{NEWEST}" for collection in ("ingestions", "curations", "runs", "indexes", "evaluations")
        ]
        return [*self.spare, *newest, *(() if method.name.startswith("Delete") else self.names)]


@st.composite
def requests(draw: Draw, method: MethodDescriptor, world: World) -> bytes:
    """Bytes of a request of ``method``."""
    hostility = draw(st.sampled_from((0, 0, 0, 1, 3, 9)))
    data = _Drawing(draw, world, method, hostility).message(method.input_type).SerializeToString()
    data = data.replace(BAD_TEXT.encode(), BAD_UTF8)
    return _damaged(draw, data, method.input_type) if draw(st.integers(0, 9)) == 0 else data


class _Drawing:
    """Draws the fields of one request."""

    def __init__(self, draw: Draw, world: World, method: MethodDescriptor, hostility: int) -> None:
        self._draw = draw
        self._world = world
        self._names = world.named(method)
        self._hostility = hostility

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        message = GetMessageClass(descriptor)()
        chosen = {oneof.name: self._draw(st.sampled_from(list(oneof.fields))) for oneof in descriptor.oneofs}
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is not None and len(oneof.fields) > 1 and chosen[oneof.name] is not field:
                continue
            if self._included(field) and depth < 6:
                self._set(message, field, depth)
        uploads = "sha256" in descriptor.fields_by_name and "chunk" in descriptor.fields_by_name
        if uploads and not self._hostile():  # an upload's last message: it fits its bytes
            message.sha256 = hashlib.sha256(message.chunk).hexdigest()  # pyright: ignore[reportAttributeAccessIssue]
        return message

    def _included(self, field: FieldDescriptor) -> bool:
        """Valid requests hold all that they must, and most of the rest."""
        if self._hostile():
            return False
        if "OUTPUT_ONLY" in behaviours_of(field.GetOptions()):
            return self._draw(st.integers(0, 19)) == 0
        rules = _rules(field)
        counted = rules.repeated.min_items or rules.map.min_pairs
        required = rules.required or rules.string.pattern or rules.string.min_len or counted
        return bool(required or field.containing_oneof) or self._draw(st.integers(0, 3)) > 0

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        rules = _rules(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._set_map(message, field, rules)
        elif field.is_repeated:
            most = int(rules.repeated.max_items or 0)
            count = self._draw(st.sampled_from((0, most + 1) if self._hostile() and most <= 300 else (1, 1, 2, 3)))
            if count > 3:  # one value many times: only the count matters
                getattr(message, field.name).extend([self._value(field, rules.repeated.items, depth)] * count)
            else:
                values = [self._value(field, rules.repeated.items, depth) for _ in range(count)]
                getattr(message, field.name).extend(values)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self._value(field, rules, depth))
        else:
            setattr(message, field.name, self._value(field, rules, depth))

    def _set_map(self, message: Message, field: FieldDescriptor, rules: Any) -> None:
        entry = _message_type(field).fields_by_name
        keys = st.sampled_from(("scenes", "emoji")) if field.name == "datasets" else st.text(max_size=8)
        for _ in range(self._draw(st.sampled_from((0, 3) if self._hostile() else (1, 1, 1, 2)))):
            value = self._value(entry["value"], rules.map.values, 0)
            if entry["value"].message_type is None:
                getattr(message, field.name)[self._draw(keys)] = value

    def _value(self, field: FieldDescriptor, rules: Any, depth: int) -> Any:
        if field.message_type is not None:
            if field.message_type.full_name == "google.protobuf.Struct":
                return self._settings()
            return self.message(field.message_type, depth + 1)
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            return self._bytes() if field.type == FieldDescriptor.TYPE_BYTES else self._text(field, rules)
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return self._draw(st.sampled_from([*_numbers(field), *((-1, 99) if self._hostile() else ())]))
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self._draw(st.booleans())
        if kind in _INT_LIMITS:
            return self._integer(kind, getattr(rules, _INT_RULES[kind]))
        return self._number(rules.double if kind == FieldDescriptor.CPPTYPE_DOUBLE else rules.float)

    def _text(self, field: FieldDescriptor, rules: Any) -> str:
        if self._hostile():
            too_long = ["a" * (rules.string.max_len + 1)] if 0 < rules.string.max_len <= 20_000 else []
            return self._draw(st.sampled_from(_TEXTS + too_long) | st.text(max_size=40))
        if rules.string.pattern:
            named = _DATASET_IDS if field.name == "dataset_id" else self._names
            known = [name for name in named if re.fullmatch(rules.string.pattern, name)]
            made = _matching(rules.string.pattern)
            return self._draw(st.sampled_from(known) if known and self._draw(st.integers(0, 3)) else made)
        pool = self._pool(field)
        least = int(rules.string.min_len)
        return self._draw(st.text(min_size=least, max_size=least + 20) if pool is None else pool)

    def _pool(self, field: FieldDescriptor) -> st.SearchStrategy[str] | None:
        """Values that mean something in fields which the rules leave free."""
        kinds = {"reader": "reader", "curator": "curator", "benchmark": "benchmark", "algorithm": "index"}
        if field.name in kinds:
            return st.sampled_from(_component_names(kinds[field.name]))
        if field.name == "uri":
            return st.sampled_from([uri.format(root=self._world.root) for uri in _URIS])
        if field.name == "recipe":
            return recipes()
        if field.name == "request_id":
            return st.sampled_from(["", "", "", ""] + [f"r{number}" for number in range(20)])
        if field.name == "name":  # GetLineage takes any resource's
            return st.sampled_from(self._names)
        pools = {"split": _SPLITS, "page_token": _TOKENS, "expected_version": ["", *self._names]}
        return st.sampled_from(pools[field.name]) if field.name in pools else None

    def _bytes(self) -> bytes:
        return self._draw(st.sampled_from(PICTURES) | st.binary(min_size=0 if self._hostile() else 1, max_size=64))

    def _integer(self, kind: int, rules: Any) -> int:
        least, most = _INT_LIMITS[kind]
        if self._hostile():
            return self._draw(st.sampled_from((least, most, -1, 0, most - 1)) | st.integers(least, most))
        low = rules.gte if rules.HasField("gte") else 0
        high = rules.lte if rules.HasField("lte") else rules.lt - 1 if rules.HasField("lt") else most
        usual = [low, low + 1, low + 2, min(high, low + 10)]
        return self._draw(st.sampled_from([*usual, *usual, low + 1, high]))

    def _number(self, rules: Any) -> float:
        if self._hostile():
            return self._draw(
                st.sampled_from([number for number in _NUMBERS if abs(number) < 1e38 or not math.isfinite(number)])
            )
        low = rules.gte if rules.HasField("gte") else 0.0
        high = rules.lte if rules.HasField("lte") else 1.0
        return self._draw(st.sampled_from((low, high, (low + high) / 2)))

    def _settings(self) -> Struct:
        """Settings of some component: often none, since a reader without any is most likely to start."""
        struct = Struct()
        if not self._hostile() and self._draw(st.booleans()):
            return struct
        for _ in range(self._draw(st.integers(1, 3))):
            key = self._draw(st.sampled_from(_setting_names()) | st.text(max_size=8))
            _assign(struct, key, self._draw(_setting_values()), self._draw(st.sampled_from((0, 0, 0, 5, 45))))
        return struct

    def _hostile(self) -> bool:
        return self._hostility > 0 and self._draw(st.integers(0, 9)) < self._hostility


@st.composite
def recipes(draw: Draw) -> str:
    """Recipes as YAML: those of the repository, changed in one place or not, and hostile ones."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(_HOSTILE_YAML) | st.text(max_size=60).map(lambda text: text or "a"))
    recipe: Any = yaml.safe_load(draw(st.sampled_from(_recipe_texts())))
    if draw(st.booleans()):
        place = recipe
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(_setting_values())
            break
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


@cache
def _recipe_texts() -> list[str]:
    return [yaml.safe_dump(load_yaml(path), sort_keys=False) for path in sorted(RECIPES.glob("*.yaml"))]


@cache
def _component_names(kind: str) -> list[str]:
    return [component.name for component in registry.components(kind)]


@cache
def _setting_names() -> list[str]:
    """Names of settings of all readers and curators, and those of a component's own keys."""
    found = [component.config for kind in ("reader", "curator") for component in registry.components(kind)]
    return [*sorted({field.name for config in found for field in dataclasses.fields(config)}), "name", "config"]


@cache
def _setting_values() -> st.SearchStrategy[Any]:
    texts = st.sampled_from(["", "x", "en", "../x", "💥", "a" * 300])
    leaves = st.none() | st.booleans() | st.sampled_from(_NUMBERS) | st.integers(-3, 300) | texts
    return (
        leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.sampled_from(("a", "name", "")), leaves, max_size=2)
    )


def _assign(struct: Struct, key: str, value: Any, depth: int) -> None:
    """``struct[key] = value``, below ``depth`` lists."""
    for _ in range(depth):
        value = [value]
    struct.update({key: value})


@cache
def _matching(pattern: str) -> st.SearchStrategy[str]:
    return st.from_regex(re.compile(pattern.removeprefix("^").removesuffix("$"), re.ASCII), fullmatch=True)


def _message_type(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


def _numbers(field: FieldDescriptor) -> list[int]:
    assert field.enum_type is not None
    return [value.number for value in field.enum_type.values]


def _rules(field: FieldDescriptor) -> Any:
    return rules_of(field.GetOptions())


def _damaged(draw: Draw, data: bytes, descriptor: Descriptor) -> bytes:
    kind = draw(st.sampled_from(_DAMAGES))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if kind == "truncate":
        return data[:at]
    if kind == "flip" and data:
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    if kind == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]
    if kind == "repeat":
        return data + data
    if kind == "deep":
        return data + _deep(draw, descriptor)
    return draw(st.binary(max_size=200))


def _deep(draw: Draw, descriptor: Descriptor) -> bytes:
    """Messages within messages, as deep as the types allow."""
    numbers: list[int] = []
    while len(numbers) < _MAX_DEPTH:
        inner = [field for field in descriptor.fields if field.message_type is not None]
        if not inner:
            break
        field = draw(st.sampled_from(inner)) if len(numbers) < 8 else inner[-1]
        numbers.append(field.number)
        descriptor = _message_type(field)
    payload = b""
    for number in reversed(numbers):
        payload = _varint(number << 3 | 2) + _varint(len(payload)) + payload
    return payload


def _varint(number: int) -> bytes:
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])
