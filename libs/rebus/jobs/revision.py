"""Which code runs: the git commit of the checkout, or the installed package's version."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REVISION_ENV = "REBUS_CODE_REVISION"


@functools.cache
def code_revision() -> str:
    """A git commit, with ``-dirty-{digest of the changes}`` where tracked files differ; else ``rebus-{version}``.

    Images set ``REBUS_CODE_REVISION`` at build time, since they carry no checkout.
    """
    if os.environ.get(REVISION_ENV):
        return os.environ[REVISION_ENV]
    found = of_checkout(Path(__file__).resolve().parents[3])
    if found:
        return found
    try:
        return f"rebus-{version('rebus')}"
    except PackageNotFoundError:
        return "unknown"


def of_checkout(root: Path) -> str:
    """The revision of a git checkout; empty if ``root`` is none."""
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else ""
    changes = _git(root, "diff", "--binary", "HEAD") if commit else ""
    return commit + (f"-dirty-{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else "")


def _git(root: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
