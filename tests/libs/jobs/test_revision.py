"""The code revision follows what runs, uncommitted changes included."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rebus.jobs import revision


def test_uncommitted_changes_change_the_revision(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    git("init")
    file = tmp_path / "code.py"
    file.write_text("a = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    clean = revision.of_checkout(tmp_path)
    file.write_text("a = 2\n")
    changed = revision.of_checkout(tmp_path)
    file.write_bytes(b"a = 3 # \xff\n")
    assert len(clean) == 40
    assert changed.startswith(f"{clean}-dirty-")
    assert len({clean, changed, revision.of_checkout(tmp_path)}) == 3
    assert revision.of_checkout(tmp_path / "none") == ""
