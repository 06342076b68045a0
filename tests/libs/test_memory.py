"""Large buffers are used again, their pages faulted in once."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from rebus.memory import keep_buffers
if sys.argv[1] == "kept" and not keep_buffers():
    sys.exit("not glibc")
def use():
    return [bytearray(b"x") * (1 << 20) for _ in range(8)]  # several at once, as calls that run side by side do
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=False)
    if "not glibc" in done.stderr:
        pytest.skip("the allocator is not glibc's")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is Linux's")
def test_a_buffer_of_a_megabyte_faults_its_pages_once() -> None:
    pages = (1 << 20) // 4096
    assert _faults("kept") < 80 * pages
    assert _faults("default") > 400 * pages  # of the 800 buffers' pages
