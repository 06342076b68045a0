"""Freed buffers are used again instead of coming as fresh pages."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

# Rounds of three blocks of media that are dropped together, as a loader drops them; prints the page faults of a round.
ROUNDS = """
import resource, sys
from rebus.data.heap import keep_freed_buffers
if sys.argv[1] == "keep":
    assert keep_freed_buffers() and keep_freed_buffers()
def round():
    blocks = [bytes([n]) * (12 << 20) for n in range(3)]
    del blocks
for _ in range(3):
    round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    round()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


def faults(mode: str) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", ROUNDS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the allocator is not glibc's")
def test_buffers_are_used_again() -> None:
    assert faults("keep") < 100
    assert faults("default") > 1000  # else there would be nothing to keep
