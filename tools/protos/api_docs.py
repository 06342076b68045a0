"""The reference of the contract, ``docs/api.md``: services with their RPCs, messages with their fields and rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, text_format

from tools.protos.comments import COMMON_CODES, codes, comments
from tools.protos.compile import PACKAGE, described, is_ours
from tools.protos.rules import words

Field = descriptor_pb2.FieldDescriptorProto
INTRODUCTION = f"""# API reference

Everything of the package `{PACKAGE}`. Generated from [`protos/rebus/v1`](../protos/rebus/v1) by `make protos`; do not
edit. How the contract is kept, and what holds for every RPC, is in [`protos/README.md`](../protos/README.md).

Beside the codes that an RPC lists, any may end with {", ".join(f"`{code}`" for code in sorted(COMMON_CODES))}.
"""


def markdown(files: descriptor_pb2.FileDescriptorSet) -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_Page(files).lines()]) + "\n"


class _Page:
    """Walks the files; links lead to what is on the page."""

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        self._comments = comments(files)
        self._files = [file for file in files.file if is_ours(file)]
        self._options = _MethodOptions(files)

    def lines(self) -> Iterator[str]:
        yield "## Services\n"
        for file in self._files:
            for service in file.service:
                yield from self._service(service)
        yield "## Messages\n"
        for file in self._files:
            for message in file.message_type:
                yield from self._message(message, PACKAGE)
            for enum in file.enum_type:
                yield from self._enum(enum, PACKAGE)

    def _service(self, service: descriptor_pb2.ServiceDescriptorProto) -> Iterator[str]:
        name = f"{PACKAGE}.{service.name}"
        yield f"### {service.name}\n\n{self._comments[name]}\n"
        rows: list[list[str]] = []
        for method in service.method:
            comment = self._comments[f"{name}.{method.name}"]
            answer = ("stream of " if method.server_streaming else "") + self._type(method.output_type)
            asked = ("stream of " if method.client_streaming else "") + self._type(method.input_type)
            listed = ", ".join(f"`{code}`" for code in codes(comment))
            rows.append([f"`{method.name}`", asked, answer, comment, listed, self._options.words(method)])
        yield from _table(["RPC", "request", "response", "what it does", "codes", "options"], rows)

    def _message(self, message: descriptor_pb2.DescriptorProto, parent: str) -> Iterator[str]:
        name = f"{parent}.{message.name}"
        yield f"### {_short(name)}\n\n{self._comments[name]}\n"
        entries = {f".{name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
        rows = [
            [
                f"`{field.name}`",
                self._field_type(message, field, entries),
                words(field),
                self._comments[f"{name}.{field.name}"],
            ]
            for field in message.field
        ]
        if rows:
            yield from _table(["field", "type", "rules", "what it is"], rows)
        for nested in message.nested_type:
            if not nested.options.map_entry:
                yield from self._message(nested, name)
        for enum in message.enum_type:
            yield from self._enum(enum, name)

    def _enum(self, enum: descriptor_pb2.EnumDescriptorProto, parent: str) -> Iterator[str]:
        name = f"{parent}.{enum.name}"
        yield f"### {_short(name)}\n\n{self._comments[name]}\n"
        rows = [[f"`{value.name}`", str(value.number), self._comments[f"{name}.{value.name}"]] for value in enum.value]
        yield from _table(["value", "number", "what it means"], rows)

    def _field_type(
        self, message: descriptor_pb2.DescriptorProto, field: Field, entries: dict[str, descriptor_pb2.DescriptorProto]
    ) -> str:
        if field.type_name in entries:
            key, value = entries[field.type_name].field
            return f"map of {self._scalar(key)} to {self._scalar(value)}"
        if field.label == Field.LABEL_REPEATED:
            return f"repeated {self._scalar(field)}"
        if field.proto3_optional:
            return f"optional {self._scalar(field)}"
        if field.HasField("oneof_index"):
            return f"{self._scalar(field)}, one of `{message.oneof_decl[field.oneof_index].name}`"
        return self._scalar(field)

    def _scalar(self, field: Field) -> str:
        return (
            self._type(field.type_name)
            if field.type_name
            else Field.Type.Name(field.type).removeprefix("TYPE_").lower()
        )

    def _type(self, name: str) -> str:
        name = name.removeprefix(".")
        if name not in self._comments:
            return f"`{name}`"
        return f"[{_short(name)}](#{_short(name).lower().replace('.', '')})"


class _MethodOptions:
    """Options of methods in words, whatever they are: read with the extensions that the protos themselves define."""

    def __init__(self, files: descriptor_pb2.FileDescriptorSet) -> None:
        self._class = described(files, "google.protobuf.MethodOptions")

    def words(self, method: descriptor_pb2.MethodDescriptorProto) -> str:
        options = self._class.FromString(method.options.SerializeToString())
        return "; ".join(f"{field.name}: {_option(field, value)}" for field, value in options.ListFields())


def _option(field: Any, value: Any) -> str:
    if field.message_type is not None:
        return f"`{text_format.MessageToString(value, as_one_line=True)}`"
    if field.enum_type is not None:
        return f"`{field.enum_type.values_by_number[value].name}`"
    return f"`{value}`"


def _short(name: str) -> str:
    return name.removeprefix(f"{PACKAGE}.")


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table without the columns that are empty in every row."""
    kept = [at for at in range(len(header)) if any(row[at] for row in rows)]
    yield "| " + " | ".join(header[at] for at in kept) + " |"
    yield "|" + "---|" * len(kept)
    for row in rows:
        yield "| " + " | ".join(row[at].replace("|", "\\|") for at in kept) + " |"
    yield ""
