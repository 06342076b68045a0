"""What the READMEs tell people to type is real: every command parses, and marked blocks run."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".venv", ".git", ".rebus", ".pytest_cache", "node_modules", "build", "dist"}
RUN_MARK = "<!-- test -->"
_BLOCK = re.compile(r"(?P<mark><!-- test -->\n)?```(?:bash|sh|shell|console)\n(?P<text>.*?)```", re.DOTALL)
_ASSIGNMENT = re.compile(r"^\w+=")


@dataclass(frozen=True)
class Block:
    """One fenced block of shell commands."""

    place: str
    text: str
    runs: bool

    def commands(self) -> list[list[str]]:
        """Each command's words: comments dropped, lines joined, pipes and lists split, assignments left out."""
        words: list[list[str]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;")
            lexer.whitespace_split = True
            command: list[str] = []
            for token in [*lexer, ";"]:
                if set(token) <= set("|&;"):
                    words.append(command)
                    command = []
                elif command or not _ASSIGNMENT.match(token):
                    command.append(token)
        return [command for command in words if command]


def blocks_of(text: str, place: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        yield Block(f"{place}:{line + 1}", match["text"], match["mark"] is not None)


def documented() -> list[Block]:
    files = [p for p in ROOT.rglob("*.md") if not SKIPPED & set(p.relative_to(ROOT).parts)]
    return [block for path in sorted(files) for block in blocks_of(path.read_text(), str(path.relative_to(ROOT)))]


def check_rebus(arguments: list[str]) -> None:
    """Parses a ``rebus`` command line as the command would, down to the last option, and calls nothing."""
    from typer.main import get_command

    from tools.rebus.main import app

    command: Any
    context: Any
    arguments = [argument for argument in arguments if argument != "--help"]
    context, name, command = None, "rebus", get_command(app)
    while hasattr(command, "resolve_command") and arguments:
        context = command.make_context(name, arguments, parent=context)
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
    if not hasattr(command, "resolve_command"):
        command.make_context(name, arguments, parent=context)


def check_make(arguments: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {argument for argument in arguments if not _ASSIGNMENT.match(argument)}
    assert asked <= targets, f"the Makefile has no target {sorted(asked - targets)}"


def check_python(arguments: list[str]) -> None:
    if "-m" in arguments:
        module = arguments[arguments.index("-m") + 1]
        assert importlib.util.find_spec(module), f"no module {module}"
    elif arguments and not arguments[0].startswith("-"):
        assert (ROOT / arguments[0]).is_file(), f"no file {arguments[0]}"


def check_kubectl(arguments: list[str]) -> None:
    for flag in ("-k", "kustomize"):
        if flag in arguments:
            folder = ROOT / arguments[arguments.index(flag) + 1]
            assert (folder / "kustomization.yaml").is_file(), f"no kustomization in {folder}"


CHECKS = {
    "rebus": check_rebus,
    ".venv/bin/rebus": check_rebus,
    "make": check_make,
    "python": check_python,
    ".venv/bin/python": check_python,
    "kubectl": check_kubectl,
}


def check(block: Block) -> None:
    for command, *arguments in block.commands():
        if command in CHECKS:
            try:
                CHECKS[command](arguments)
            except Exception as error:
                raise AssertionError(f"{block.place}: {shlex.join([command, *arguments])}: {error}") from error


@pytest.mark.parametrize("block", documented(), ids=lambda block: block.place)
def test_documented_commands_parse(block: Block) -> None:
    check(block)


@pytest.mark.parametrize(
    "line",
    [
        "rebus no-such-command",
        "rebus papers --no-such-option",
        "make no-such-target",
        "python -m pipelines.no_such_module",
        "python tools/bench/no_such_file.py",
        "kubectl apply -k k8s/overlays/nowhere",
        "cd x && FOO=1 make no-such-target | head",
    ],
)
def test_a_wrong_command_is_caught(line: str) -> None:
    (block,) = blocks_of(f"text\n```bash\n{line}\n```\n", "README.md")
    with pytest.raises(AssertionError, match=r"README.md:3: "):
        check(block)


def test_blocks_are_found_with_their_marks() -> None:
    text = "```bash\na # why\nb \\\n  -c\n```\n<!-- test -->\n```bash\nX=1 d | e\n```\n```python\nf\n```\n"
    first, second = blocks_of(text, "x.md")
    assert (first.runs, first.commands()) == (False, [["a"], ["b", "-c"]])
    assert (second.runs, second.commands()) == (True, [["d"], ["e"]])


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in documented() if b.runs], ids=lambda block: block.place)
def test_marked_blocks_run(block: Block, tmp_path: Path) -> None:
    """From the root of the checkout, with the environment's programs first in the path and a store of its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "REBUS_STORE": (tmp_path / "store").as_uri()}
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{block.place}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
