"""``buf lint`` and ``buf breaking`` over the protos: ``python -m tools.protos.buf``.

buf comes from PyPI (``buf-bin``), so that no node is needed. It is given compiled descriptors: the imported option
protos come from installed packages, where buf would ask its registry for them. Both commands obey ``protos/buf.yaml``.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from tools.protos import compile

CONFIG = compile.PROTOS / "buf.yaml"
TIMEOUT_SECONDS = 120
OURS = f"--path={compile.PACKAGE.replace('.', '/')}"


def executable() -> str | None:
    """The ``buf`` of this environment, or of the path."""
    return shutil.which("buf", path=sysconfig.get_path("scripts")) or shutil.which("buf")


def lint(program: str, protos: Path = compile.PROTOS) -> str:
    """What breaks the rules of ``buf.yaml``, one line each; empty if nothing does."""
    with tempfile.TemporaryDirectory() as folder:
        return _buf(program, "lint", str(_image(protos, Path(folder) / "image.binpb")), OURS)


def breaking(program: str, old: Path, new: Path = compile.PROTOS) -> str:
    """What a client of the protos below ``old`` would find broken in ``new``, one line each."""
    with tempfile.TemporaryDirectory() as folder:
        image, against = (_image(at, Path(folder) / f"{name}.binpb") for name, at in (("new", new), ("old", old)))
        return _buf(program, "breaking", str(image), f"--against={against}", OURS)


def baseline() -> str | None:
    """The revision that the contract must not break: the last tag, else ``main``."""
    tag = _git("describe", "--tags", "--abbrev=0")
    if tag is not None:
        return tag.decode().strip()
    return next((name for name in ("main", "origin/main") if _git("rev-parse", "--verify", name) is not None), None)


def protos_of(revision: str, folder: Path) -> Path:
    """The protos of a revision, written below ``folder``."""
    archive = _git("archive", "--format=tar", revision, "protos")
    if archive is None:
        raise SystemExit(f"git knows no protos of {revision}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "protos"


def _image(protos: Path, path: Path) -> Path:
    path.write_bytes(compile.descriptors(protos).SerializeToString())
    return path


def _buf(program: str, *arguments: str) -> str:
    command = [program, *arguments, f"--config={CONFIG}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode and not done.stdout:
        raise SystemExit(f"buf {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _git(*arguments: str) -> bytes | None:
    done = subprocess.run(["git", "-C", str(compile.ROOT), *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="must not be broken (default: the last tag, else main)")
    args = parser.parse_args(argv)
    program, revision = executable(), args.against or baseline()
    if program is None:
        print("buf SKIPPED: there is no `buf` program; `make setup` installs it")
        return 0
    found = lint(program)
    if revision is None:
        print("buf breaking SKIPPED: this checkout has neither a tag nor main; name a revision with --against")
    else:
        with tempfile.TemporaryDirectory() as folder:
            found += breaking(program, protos_of(revision, Path(folder)))
    print(found, end="", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
