"""Runs the fast tests of one folder inside Bazel's tree of links."""

from __future__ import annotations

import os
import sys

import pytest


def main(folder: str) -> int:
    temporary = os.environ.get("TEST_TMPDIR")
    if temporary:
        os.environ.update(HOME=temporary, TMPDIR=temporary)
    # The files are links into the checkout, whose cache folder belongs to others.
    code = pytest.main([folder, "-m", "not slow", "-p", "no:cacheprovider"])
    return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
