"""``buf`` finds the protos in order, and would find them out of order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.protos import buf, compile


@pytest.fixture(scope="module")
def program() -> str:
    found = buf.executable()
    if found is None:
        pytest.skip("no `buf` program: install the package buf-bin")
    return found


def edited(folder: Path, old: str, new: str) -> Path:
    protos = shutil.copytree(compile.PROTOS, folder / "protos")
    path = protos / "rebus/v1/training.proto"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return protos


def test_the_protos_are_clean(program: str) -> None:
    assert buf.lint(program) == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("string source = 1;", "string Source = 1;", "should be lower_snake_case"),
        ("  // Images consumed.\n", "", 'Field "num_images" should have a non-empty comment'),
        ("service TrainingService {", "service Training {", 'should be suffixed with "Service"'),
    ],
)
def test_lint_names_what_is_wrong(program: str, tmp_path: Path, old: str, new: str, message: str) -> None:
    found = buf.lint(program, edited(tmp_path, old, new))
    assert message in found
    assert found.startswith("rebus/v1/training.proto:")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("int64 num_samples = 4;", "int32 num_samples = 4;", 'changed type from "int64" to "int32"'),
        ("string source = 1;", "string data_source = 1;", 'changed name from "source" to "data_source"'),
        ("rpc GetRun(", "rpc FetchRun(", 'Previously present RPC "GetRun"'),
    ],
)
def test_breaking_names_what_a_client_would_miss(
    program: str, tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert message in buf.breaking(program, compile.PROTOS, edited(tmp_path, old, new))


def test_an_addition_breaks_nothing(program: str, tmp_path: Path) -> None:
    new = edited(tmp_path, "  int64 num_images = 6;", "  int64 num_images = 6;\n  // New.\n  int64 more = 7;")
    assert buf.breaking(program, compile.PROTOS, new) == ""


def test_without_buf_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(buf, "executable", lambda: None)
    assert buf.main([]) == 0
    assert "buf SKIPPED" in capsys.readouterr().out


def test_without_a_baseline_it_says_so(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(buf, "baseline", lambda: None)
    assert buf.main([]) == 0
    assert "buf breaking SKIPPED" in capsys.readouterr().out
