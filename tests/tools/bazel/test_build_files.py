"""`bazel test //...` leaves nothing out: every package and every test file belongs to a target."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
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


def test_every_dependency_exists() -> None:
    for path in [p for p in ROOT.rglob("BUILD.bazel") if ".venv" not in p.parts]:
        for label in re.findall(r'"//(?!visibility)([\w/]+)(?::([\w.]+))?"', path.read_text()):
            folder, name = label
            if name == "__pkg__" or (ROOT / folder / name).is_file():
                continue
            target = ROOT / folder / "BUILD.bazel"
            assert target.is_file(), f"{path.relative_to(ROOT)}: //{folder} has no BUILD file"
            wanted = name or folder.rpartition("/")[2]
            assert f'"{wanted}"' in target.read_text(), f"{path.relative_to(ROOT)}: no target {wanted} in //{folder}"
