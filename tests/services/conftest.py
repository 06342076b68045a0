"""All services behind one real gRPC server on a loopback port, and clients for it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from rebus.client import Client
from rebus.store import Store
from services.harness.embedded import hosted


@pytest.fixture
def endpoint(store: Store, _own_cache: None) -> Iterator[str]:
    """A server over the test's own store."""
    with hosted(store.url) as address:
        yield address


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    """A client of that server."""
    with Client(endpoint) as opened:
        yield opened


@pytest.fixture
def channel(endpoint: str) -> Iterator[grpc.Channel]:
    """A bare channel, for what the client hides."""
    with grpc.insecure_channel(endpoint) as opened:
        yield opened
