"""The contract is what it was agreed to be, says what it means, and its generated files are current."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2

from tools.protos import __main__ as protos
from tools.protos import api_docs, compile, golden
from tools.protos.comments import codes, comments, documented_codes

READS = ("Get", "List", "Watch", "Search", "Embed", "Generate")


@pytest.fixture(scope="module")
def files() -> descriptor_pb2.FileDescriptorSet:
    return compile.descriptors()


def methods(files: descriptor_pb2.FileDescriptorSet) -> dict[str, descriptor_pb2.MethodDescriptorProto]:
    return {
        f"{file.package}.{service.name}.{method.name}": method
        for file in files.file
        if compile.is_ours(file)
        for service in file.service
        for method in service.method
    }


def messages(files: descriptor_pb2.FileDescriptorSet) -> dict[str, descriptor_pb2.DescriptorProto]:
    return {f".{file.package}.{message.name}": message for file in files.file for message in file.message_type}


def changed(folder: Path, path: str, old: str, new: str) -> descriptor_pb2.FileDescriptorSet:
    """Descriptors of the protos after an edit of one file."""
    copy = shutil.copytree(compile.PROTOS, folder / "protos")
    text = (copy / path).read_text()
    assert old in text
    (copy / path).write_text(text.replace(old, new))
    return compile.descriptors(copy)


def test_generated_files_are_current() -> None:
    """After a deliberate change of the protos: ``make protos``."""
    assert protos.main(["--check"]) == 0


def test_a_file_that_is_not_current_is_named(tmp_path: Path) -> None:
    fresh, stale = tmp_path / "fresh", tmp_path / "stale"
    for tree in (fresh, stale):
        for name in (protos.GOLDEN, protos.REFERENCE, protos.GENERATED[0] / "a_pb2.py"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text("same")
    assert protos.differences(fresh, stale) == []
    (stale / protos.GOLDEN).write_text("other")
    (stale / protos.GENERATED[0] / "b_pb2.py").write_text("left over")
    assert protos.differences(fresh, stale) == ["libs/rebus/v1/b_pb2.py", "protos/descriptor.txtpb"]


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("rebus/v1/training.proto", "int64 num_tokens = 5;", "int64 num_tokens = 50;"),
        ("rebus/v1/training.proto", "max_len: 65536", "max_len: 65537"),
        ("rebus/v1/generation.proto", "returns (stream GenerateResponse)", "returns (GenerateResponse)"),
    ],
)
def test_the_golden_descriptor_shows_a_change(
    files: descriptor_pb2.FileDescriptorSet, tmp_path: Path, path: str, old: str, new: str
) -> None:
    assert golden.text(changed(tmp_path, path, old, new)) != golden.text(files)


def test_the_golden_descriptor_does_not_depend_on_comments(
    files: descriptor_pb2.FileDescriptorSet, tmp_path: Path
) -> None:
    other = changed(tmp_path, "rebus/v1/training.proto", "// Training runs.", "// Runs.")
    assert golden.text(other) == golden.text(files)
    assert api_docs.markdown(other) != api_docs.markdown(files)


def test_everything_is_commented(files: descriptor_pb2.FileDescriptorSet, tmp_path: Path) -> None:
    found = comments(files)
    assert len(found) > 400
    assert [name for name, text in found.items() if not text] == []
    other = changed(tmp_path, "rebus/v1/training.proto", "  // Images consumed.\n", "")
    assert [name for name, text in comments(other).items() if not text] == ["rebus.v1.MixtureShare.num_images"]


def test_every_rpc_says_how_it_fails(files: descriptor_pb2.FileDescriptorSet) -> None:
    texts = comments(files)
    assert len(methods(files)) > 35
    silent = [name for name in methods(files) if not codes(texts[name]) and "Cannot fail" not in texts[name]]
    assert silent == []


def test_codes_are_read_from_a_comment() -> None:
    assert codes("NOT_FOUND names it; ABORTED if moved. NOT_FOUND again, NOT_FOUNDED never, OK.") == [
        "NOT_FOUND",
        "ABORTED",
    ]


def test_documented_codes_hold_the_methods_own_and_the_common_ones(files: descriptor_pb2.FileDescriptorSet) -> None:
    documented = documented_codes(files)
    assert documented.keys() == methods(files).keys()
    assert {"ABORTED", "NOT_FOUND", "UNAVAILABLE"} <= documented["rebus.v1.ModelService.SetModelAlias"]
    assert "ABORTED" not in documented["rebus.v1.ModelService.GetModel"]


def test_every_mutation_takes_a_request_id(files: descriptor_pb2.FileDescriptorSet) -> None:
    inputs = messages(files)
    for name, method in methods(files).items():
        fields = {field.name for field in inputs[method.input_type].field}
        # An upload that names its content by its digest stores the same object when it is repeated: that is its id.
        by_content = method.client_streaming and "sha256" in fields
        assert ("request_id" in fields) != (method.name.startswith(READS) or by_content), name


def test_every_request_says_what_a_name_looks_like(files: descriptor_pb2.FileDescriptorSet) -> None:
    """Without a pattern a bad name is found only by the store, whose error names no field of the request."""
    found = {
        request.name: field.options.Extensions[validate_pb2.field].string.pattern
        for name, request in messages(files).items()
        if name in {method.input_type for method in methods(files).values()}
        for field in request.field
        if field.name == "name"
    }
    assert len(found) > 20
    assert [request for request, pattern in found.items() if not pattern] == []


def test_no_two_rpcs_share_a_request(files: descriptor_pb2.FileDescriptorSet) -> None:
    """A request's type is what tells its id from that of another method (``rebus.store.requests``)."""
    inputs = [method.input_type for method in methods(files).values()]
    assert len(inputs) == len(set(inputs))


def test_the_reference_lists_everything(files: descriptor_pb2.FileDescriptorSet) -> None:
    page = api_docs.markdown(files)
    for name, method in methods(files).items():
        asked = "stream of [" if method.client_streaming else "["
        assert f"| `{name.rpartition('.')[2]}` | {asked}" in page
    for name in comments(files):
        assert f"`{name.rpartition('.')[2]}`" in page or f"### {name.removeprefix('rebus.v1.')}\n" in page
    anchors = {re.sub(r"[^\w-]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= anchors


def test_the_reference_says_the_rules_in_words(files: descriptor_pb2.FileDescriptorSet) -> None:
    page = api_docs.markdown(files)
    assert "| `shape` | repeated int64 | at most 8 of them; each ≥ 0 |" in page
    assert "| `recipe` | string | required; at least 1 long; at most 65536 long |" in page
    assert "map of string to string | at least 1 of them; at most 64 of them; each value matches `^datasets/" in page


def test_the_reference_shows_options_of_methods(files: descriptor_pb2.FileDescriptorSet, tmp_path: Path) -> None:
    """Whichever the protos define: the role that a method asks for, and what is not thought of yet."""
    assert api_docs.markdown(files).count("access: `role: ") == len(methods(files))
    option = "option deprecated = true;\n    option (rebus.v1.access) = {role: EDITOR};"
    other = changed(tmp_path, "rebus/v1/training.proto", "option (rebus.v1.access) = {role: EDITOR};", option)
    assert "| deprecated: `True`; access: `role: EDITOR` |" in api_docs.markdown(other)
