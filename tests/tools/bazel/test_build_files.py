"""`bazel test //...` leaves nothing out: every package and every test file belongs to a target."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TREES = ("k8s", "libs", "pipelines", "protos", "services", "tests", "tools")
FLOORS = ("libs/rebus", "services")


def packages() -> list[Path]:
    """Folders of Python that are a floor of their own: direct children of the floors, generated code aside."""
    children = [path for floor in FLOORS for path in sorted((ROOT / floor).iterdir())]
    return [path for path in children if (path / "__init__.py").is_file() and path.name != "v1"]


def build_file(folder: Path) -> Path:
    """The nearest BUILD file at or above a folder."""
    return next(f / "BUILD.bazel" for f in (folder, *folder.parents) if (f / "BUILD.bazel").is_file())


def test_every_package_has_a_target() -> None:
    assert len(packages()) > 10
    missing = [str(path.relative_to(ROOT)) for path in packages() if not (path / "BUILD.bazel").is_file()]
    assert missing == []


def test_every_test_file_belongs_to_a_test_target() -> None:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    assert files
    without = [f for f in files if "rebus_tests(" not in build_file(f.parent).read_text()]
    assert [str(f.relative_to(ROOT)) for f in without] == []


def dependencies() -> dict[str, set[str]]:
    """Labels of the targets each BUILD file depends on, by the file's folder."""
    found: dict[str, set[str]] = {}
    for path in (path for tree in TREES for path in (ROOT / tree).rglob("BUILD.bazel")):
        lists = re.findall(r"deps = \[(.*?)\]", path.read_text(), re.DOTALL)
        found[str(path.parent.relative_to(ROOT))] = set(re.findall(r'"//([\w/]+)(?::files)?"', " ".join(lists)))
    return found


def reachable(folders: set[str], graph: dict[str, set[str]]) -> set[str]:
    more = set().union(*(graph[folder] for folder in folders)) - folders
    return reachable(folders | more, graph) if more else folders


def imported_targets(path: Path) -> set[str]:
    """The targets that a file's imports come from, at any depth of the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    folders = {name.replace(".", "/") for name in names}
    candidates = {f"libs/{folder}" for folder in folders} | folders
    return {target for target in map(target_of, candidates) if target}


@cache
def target_of(module: str) -> str | None:
    """The target that holds a module, given as a path from the root: the nearest BUILD file's at or above it."""
    if module.partition("/")[0] not in ("libs", "services", "pipelines", "tests", "tools"):
        return None
    if not ((ROOT / module).is_dir() or (ROOT / f"{module}.py").is_file()):
        return None
    return str(build_file(ROOT / module).relative_to(ROOT).parent)


def test_every_dependency_exists() -> None:
    graph = dependencies()
    assert len(graph) > 20
    for folder, targets in graph.items():
        assert targets <= graph.keys(), f"{folder}/BUILD.bazel: {targets - graph.keys()} have no BUILD file"


def test_tests_depend_on_what_they_import() -> None:
    """Otherwise Bazel would take a test's cached success for true after a change of what it tests."""
    graph = dependencies()
    for path in sorted((ROOT / "tests").rglob("*.py")):
        folder = str(build_file(path.parent).parent.relative_to(ROOT))
        if folder != "tests":
            missing = imported_targets(path) - reachable(graph[folder], graph) - {folder, "tests"}
            assert not missing, f"{folder}/BUILD.bazel lacks {sorted(missing)}, which {path.name} imports"
