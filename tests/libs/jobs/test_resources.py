from __future__ import annotations

from pathlib import Path

import pytest

from rebus.errors import FailedPreconditionError, InvalidArgumentError
from rebus.jobs import resources
from rebus.jobs.resources import Capacity, ResourceRequest, claim_of
from rebus.jobs.settings import JobSettings
from rebus.v1.common_pb2 import Resources

MACHINE = Capacity(cpus=4, memory_bytes=100, gpus=("0", "1", "2"))


def test_a_job_fits_beside_the_others_or_waits() -> None:
    others = [claim_of(Resources(cpus=1.5, memory_bytes=40, gpus=1), ("1",))]
    assert MACHINE.assign(Resources(cpus=2.5, memory_bytes=60, gpus=2), others) == ("0", "2")
    for more in (Resources(cpus=2.6), Resources(memory_bytes=61), Resources(gpus=3)):
        assert MACHINE.assign(more, others) is None
        assert MACHINE.assign(more, ()) is not None


def test_a_request_beyond_the_machine_names_its_fields() -> None:
    MACHINE.check(Resources(cpus=4, memory_bytes=100, gpus=3))
    with pytest.raises(FailedPreconditionError) as caught:
        MACHINE.check(Resources(cpus=4.5, memory_bytes=101))
    text = "resources.cpus: asked for 4.5, there are 4; resources.memory_bytes: asked for 101, there are 100"
    assert str(caught.value) == f"{text}: no machine of this size"
    assert MACHINE.limit(Resources(cpus=9, memory_bytes=7, gpus=4)) == Resources(cpus=4, memory_bytes=7, gpus=3)


def test_this_machine_has_something() -> None:
    machine = Capacity.of_machine()
    assert machine.cpus > 0
    assert machine.memory_bytes > 64 << 20


def test_accelerators_are_those_the_environment_names_or_their_device_files(tmp_path: Path) -> None:
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert resources._gpus({}, tmp_path) == ("2", "10")
    assert resources._gpus({"CUDA_VISIBLE_DEVICES": "1,GPU-a"}, tmp_path) == ("1", "GPU-a")
    assert resources._gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()


def test_settings_come_from_variables_and_go_back_into_them() -> None:
    found = JobSettings.from_environment({"REBUS_JOBS_CPUS": "1.5", "REBUS_JOBS_MAX_QUEUED": "7", "OTHER": "x"})
    assert (found.cpus, found.max_queued, found.lease_seconds) == (1.5, 7, JobSettings().lease_seconds)
    assert JobSettings.from_environment(found.to_environment()) == found
    with pytest.raises(InvalidArgumentError, match="REBUS_JOBS.max_queued"):
        JobSettings.from_environment({"REBUS_JOBS_MAX_QUEUED": "many"})
    with pytest.raises(InvalidArgumentError, match="lease_seconds must be at least 3 tick_seconds"):
        JobSettings.from_environment({"REBUS_JOBS_LEASE_SECONDS": "1"})
    with pytest.raises(ValueError, match="cpus=-1"):
        ResourceRequest(cpus=-1)
