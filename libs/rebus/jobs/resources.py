"""What jobs ask for and what the machine has: cores, memory, accelerators."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from rebus.errors import FailedPreconditionError
from rebus.v1.common_pb2 import Resources

_CGROUP_MEMORY = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
_NVIDIA_DEVICES = Path("/dev")


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """What one job asks of the machine that runs it; a recipe's ``resources``."""

    # Processor cores; parts of one are allowed.
    cpus: float = 1.0
    # Main memory, in bytes.
    memory_bytes: int = 0
    # Whole accelerators, each for this job alone.
    gpus: int = 0

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.memory_bytes < 0 or self.gpus < 0:
            raise ValueError(f"cpus={self.cpus}, memory_bytes={self.memory_bytes}, gpus={self.gpus} must not be < 0")

    def to_proto(self) -> Resources:
        return Resources(cpus=self.cpus, memory_bytes=self.memory_bytes, gpus=self.gpus)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a machine gives to jobs."""

    # Processor cores.
    cpus: float
    # Main memory, in bytes.
    memory_bytes: int
    # Ids of the accelerators, as ``CUDA_VISIBLE_DEVICES`` names them.
    gpus: tuple[str, ...] = ()

    @classmethod
    def of_machine(cls) -> Capacity:
        """Of this machine: the cores this process may use, its memory or its container's, its visible accelerators."""
        return cls(cpus=available_cpus(), memory_bytes=_memory(), gpus=_gpus(os.environ, _NVIDIA_DEVICES))

    def check(self, request: Resources) -> None:
        """``FailedPreconditionError`` naming each field of a request that can never be met here."""
        found = {
            "cpus": (request.cpus, self.cpus),
            "memory_bytes": (request.memory_bytes, self.memory_bytes),
            "gpus": (request.gpus, len(self.gpus)),
        }
        lacking = [f"{name}: asked for {ask:g}, there are {has:g}" for name, (ask, has) in found.items() if ask > has]
        if lacking:
            raise FailedPreconditionError(f"resources.{'; resources.'.join(lacking)}: no machine of this size")

    def limit(self, request: Resources) -> Resources:
        """``request``, no field of it beyond what there is: for what a job asks for without its caller saying so."""
        return Resources(
            cpus=min(request.cpus, self.cpus),
            memory_bytes=min(request.memory_bytes, self.memory_bytes),
            gpus=min(request.gpus, len(self.gpus)),
        )

    def assign(self, request: Resources, others: Iterable[Mapping[str, object]]) -> tuple[str, ...] | None:
        """The accelerators a job gets beside ``others`` (see ``claim_of``); ``None`` if it does not fit now."""
        cpus, memory, taken = self.cpus, self.memory_bytes, set[str]()
        for claim in others:
            cpus -= float(str(claim.get("cpus", 0)))
            memory -= int(str(claim.get("memory_bytes", 0)))
            gpus = claim.get("gpus")
            taken.update(map(str, gpus if isinstance(gpus, list) else ()))
        free = [gpu for gpu in self.gpus if gpu not in taken]
        fits = request.cpus <= cpus + 1e-9 and request.memory_bytes <= memory and request.gpus <= len(free)
        return tuple(free[: request.gpus]) if fits else None


def claim_of(request: Resources, gpus: tuple[str, ...]) -> dict[str, object]:
    """What a running job holds, as its process record keeps it."""
    return {"cpus": request.cpus, "memory_bytes": request.memory_bytes, "gpus": list(gpus)}


def available_cpus() -> float:
    """Cores that this process may use, by its affinity and its control group."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, _, period = _CGROUP_CPU.read_text().partition(" ")
        return min(allowed, int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return allowed


def _memory() -> int:
    total = psutil.virtual_memory().total
    for path in _CGROUP_MEMORY:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total


def _gpus(environ: Mapping[str, str], devices: Path) -> tuple[str, ...]:
    """Without a driver's library: those the environment names, else the device files ``nvidia<n>``."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        return tuple(filter(None, environ["CUDA_VISIBLE_DEVICES"].split(",")))
    names = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia*"))
    return tuple(sorted((name for name in names if name.isdigit()), key=int))
