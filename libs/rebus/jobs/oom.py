"""Evidence that the kernel killed for lack of memory: the counters it keeps of such kills.

Linux documents them in ``admin-guide/cgroup-v2.rst`` (``memory.events``), ``cgroup-v1/memory.rst``
(``memory.oom_control``); each has a line ``oom_kill N`` and counts kills within one group of processes.
The count of the whole machine (``/proc/vmstat``) is left out: it would blame a job for another's lack of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


class OomWatch:
    """Whether such a kill was counted lately: since the last but one ``tick``."""

    def __init__(self, counters: Sequence[Path] | None = None) -> None:
        self._counters = own_counters() if counters is None else list(counters)
        self._before = self._last = self._read()

    def tick(self) -> None:
        """To be called every few seconds."""
        self._before, self._last = self._last, self._read()

    def rose(self) -> bool:
        """Whether any counter stands higher than two ticks ago."""
        return any(now > before for now, before in zip(self._read(), self._before, strict=True))

    def _read(self) -> list[int]:
        return [_count(path) for path in self._counters]


def own_counters(proc_cgroup: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The counters that a kill of this process's children would show in."""
    found: list[Path] = []
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append(_CGROUPS / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(_CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control")
    return found


def _count(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
