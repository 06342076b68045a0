"""Lack of memory is said only where the kernel counted a kill for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rebus.jobs import exits
from rebus.jobs.oom import OomWatch, own_counters
from rebus.v1.common_pb2 import JobExit

CGROUPS = Path("/sys/fs/cgroup")


def test_counters_follow_the_cgroup_of_the_process(tmp_path: Path) -> None:
    file = tmp_path / "cgroup"
    file.write_text("5:cpu,memory:/a/b\n0::/c\n")
    assert [str(path) for path in own_counters(file)] == [
        "/sys/fs/cgroup/memory/a/b/memory.oom_control",
        "/sys/fs/cgroup/c/memory.events",
    ]
    assert own_counters(tmp_path / "none") == []


def test_only_kills_of_the_last_two_ticks_count(tmp_path: Path) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom 9\noom_kill 3\n")
    watch = OomWatch([counter, tmp_path / "none"])
    assert not watch.rose()
    counter.write_text("oom 9\noom_kill 4\n")
    assert watch.rose()
    watch.tick()
    assert watch.rose()
    watch.tick()
    assert not watch.rose()


def test_a_kill_without_such_evidence_stays_a_kill() -> None:
    killed = -signal.SIGKILL
    assert exits.of_process(killed, [], oom_killed=False)[1] == JobExit(reason=JobExit.SIGNAL, signal="SIGKILL")
    error, exit = exits.of_process(killed, [], oom_killed=True)
    assert exit == JobExit(reason=JobExit.OUT_OF_MEMORY, signal="SIGKILL")
    assert error.reason == "RESOURCE_EXHAUSTED"
    assert exits.of_process(-signal.SIGSEGV, [], oom_killed=True)[1].reason == JobExit.SIGNAL


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 64 MiB below this process's own."""
    own = next((path.parent for path in own_counters() if os.access(path.parent, os.W_OK)), None)
    folder = own / f"rebus-test-{os.getpid()}" if own else None
    try:
        if folder is None:
            raise OSError("no memory cgroup of this process can be written")
        folder.mkdir()
        limit = next(folder / name for name in ("memory.max", "memory.limit_in_bytes") if (folder / name).exists())
        limit.write_text(str(64 << 20))
    except (OSError, StopIteration) as error:
        pytest.skip(f"no cgroup with a memory limit can be made here: {error}")
    yield folder
    folder.rmdir()


@pytest.mark.slow
def test_a_real_kill_for_lack_of_memory_is_counted(small_cgroup: Path) -> None:
    name = "memory.events" if (small_cgroup / "memory.events").exists() else "memory.oom_control"
    watch = OomWatch([small_cgroup / name])
    join = f"open({str(small_cgroup / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))"
    eat = "data = []\nwhile True: data.append(bytearray(1 << 20))"
    done = subprocess.run([sys.executable, "-S", "-c", f"{join}\n{eat}"], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert watch.rose()
