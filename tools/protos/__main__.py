"""Makes everything that is generated from the protos: ``python -m tools.protos``, or ``--check`` that it is current.

``libs/rebus/v1`` holds the messages and stubs, ``protos/descriptor.txtpb`` the contract as one golden file, and
``docs/api.md`` the reference.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tools.protos import api_docs, compile, golden

GOLDEN = Path("protos/descriptor.txtpb")
REFERENCE = Path("docs/api.md")
GENERATED = [Path("libs") / folder for folder in compile.GENERATED]


def generate(root: Path) -> None:
    """Writes all generated files below ``root``, laid out as in the repository."""
    compile.generate(root / "libs")
    files = compile.descriptors()
    for path, text in ((GOLDEN, golden.text(files)), (REFERENCE, api_docs.markdown(files))):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def differences(fresh: Path, root: Path) -> list[str]:
    """Generated files that differ between two trees, or exist in one of them only."""
    names = {GOLDEN, REFERENCE}
    for tree in (fresh, root):
        names |= {path.relative_to(tree) for folder in GENERATED for path in (tree / folder).glob("*.py*")}
    return sorted(str(name) for name in names if _bytes(fresh / name) != _bytes(root / name))


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if a generated file is not current"
    )
    args = parser.parse_args(argv)
    if not args.check:
        generate(compile.ROOT)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        differing = differences(Path(temporary), compile.ROOT)
    for name in differing:
        print(f"{name} does not match protos/; run `make protos`", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
