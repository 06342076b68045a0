"""Which code runs: the git commit of the checkout, or the installed package's version."""

from __future__ import annotations

import functools
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REVISION_ENV = "REBUS_CODE_REVISION"


@functools.cache
def code_revision() -> str:
    """A git commit, with ``-dirty`` where the tree differs from it; else ``rebus-{version}``.

    Images set ``REBUS_CODE_REVISION`` at build time, since they carry no checkout.
    """
    if os.environ.get(REVISION_ENV):
        return os.environ[REVISION_ENV]
    root = Path(__file__).resolve().parents[3]
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            return commit + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    try:
        return f"rebus-{version('rebus')}"
    except PackageNotFoundError:
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
