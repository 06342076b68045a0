"""Injected failures between the store and a live SeaweedFS: what may be repeated is, and nothing is applied twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rebus.errors import AbortedError, AlreadyExistsError, NotFoundError, UnavailableError
from rebus.store import Store, StoreSettings, documents
from rebus.v1.training_pb2 import Run
from tests.libs.store.faults import ANSWERED_LATE, FAULTS, FaultyProxy, proxy

pytestmark = pytest.mark.slow

SETTINGS = StoreSettings(
    request_timeout_s=3, max_retries=12, retry_timeout_s=120, init_backoff_s=0.01, max_backoff_s=0.1
)
BODY = random.Random(0).randbytes(300_000)


@pytest.fixture
def faulty(s3_store: Store, seaweed_variables: dict[str, str]) -> Iterator[FaultyProxy]:
    with proxy(seaweed_variables["AWS_ENDPOINT_URL"], stall_s=SETTINGS.request_timeout_s + 0.5) as server:
        yield server


@pytest.fixture
def remote(faulty: FaultyProxy, s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of ``s3_store``, reached through the proxy."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
    return Store.open(s3_store.url, SETTINGS)


REPEATABLE: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("body") == BODY,
    "get_range": lambda store: store.get_range("body", 1000, 2000) == BODY[1000:3000],
    "chunks": lambda store: b"".join(store.chunks("body")) == BODY,
    "info": lambda store: store.info("body").size == len(BODY),
    "list": lambda store: [info.path for info in store.list()] == ["body"],
    "folders": lambda store: store.folders("none") == [],
    "put": lambda store: (store.put("x", b"1"), store.get("x") == b"1")[1],
    "copy": lambda store: (store.copy("body", "x"), store.get("x") == BODY)[1],
    "delete": lambda store: (store.delete("body"), not store.exists("body"))[1],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", REPEATABLE)
def test_what_may_be_repeated_is(
    s3_store: Store, remote: Store, faulty: FaultyProxy, operation: str, fault: str
) -> None:
    s3_store.put("body", BODY)
    faulty.plan(fault)
    assert REPEATABLE[operation](remote)
    assert [found for found, _ in faulty.injected] == [fault]


@pytest.mark.parametrize("fault", FAULTS)
def test_create_is_reported_as_what_happened(s3_store: Store, remote: Store, faulty: FaultyProxy, fault: str) -> None:
    faulty.plan(fault, method="PUT")
    remote.create("mine", b"same")
    assert s3_store.get("mine") == b"same"

    s3_store.create("theirs", b"same")
    faulty.plan(fault, method="PUT")
    with pytest.raises(AlreadyExistsError, match="theirs exists"):
        remote.create("theirs", b"same")
    assert len(faulty.injected) == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_swap_is_reported_as_what_happened(s3_store: Store, remote: Store, faulty: FaultyProxy, fault: str) -> None:
    s3_store.put("x", b"0")
    _, tag = remote.get_tagged("x")
    faulty.plan(fault, method="PUT")
    remote.swap("x", b"1", tag)
    assert s3_store.get("x") == b"1"

    _, stale = remote.get_tagged("x")
    s3_store.swap("x", b"2", stale)
    faulty.plan(fault, method="PUT")
    with pytest.raises(AbortedError, match="x was changed"):
        remote.swap("x", b"2", stale)  # what the other writer wrote: the bytes do not tell them apart
    assert len(faulty.injected) == 2


@pytest.mark.parametrize("fault", ANSWERED_LATE)
def test_a_swap_that_others_built_on_counts_as_applied(
    s3_store: Store, remote: Store, faulty: FaultyProxy, fault: str
) -> None:
    """The answer is lost, and before the writer asks again another one has replaced what it wrote."""
    s3_store.create("x", b"0")
    _, tag = remote.get_tagged("x")
    faulty.after = lambda: s3_store.swap("x", b"2", s3_store.get_tagged("x")[1])
    faulty.plan(fault, method="PUT")
    remote.swap("x", b"1", tag)
    assert s3_store.get("x") == b"2"


def test_what_cannot_be_known_is_said(s3_store: Store, remote: Store, faulty: FaultyProxy) -> None:
    """A plain write over it wipes out the trace of what went before."""
    s3_store.create("x", b"0")
    _, tag = remote.get_tagged("x")
    faulty.after = lambda: s3_store.put("x", b"2")
    faulty.plan("lost_closed", method="PUT")
    with pytest.raises(UnavailableError, match="x: the store did not answer, and whether it wrote cannot be known"):
        remote.swap("x", b"1", tag)


def test_an_upload_in_parts_survives_failures_and_repeats_only_parts(
    s3_store: Store, remote: Store, faulty: FaultyProxy, tmp_path: Path
) -> None:
    data = random.Random(1).randbytes(20 << 20)
    (tmp_path / "file").write_bytes(data)
    faulty.plan(None, "error_503", "error_500", "refused")
    remote.upload(tmp_path / "file", "big")
    assert s3_store.get("big") == data
    assert len(faulty.injected) == 3


def test_the_budget_bounds_the_attempts(remote: Store, faulty: FaultyProxy) -> None:
    faulty.decide = lambda method, path: "error_503"
    few = Store.open(remote.url, replace(SETTINGS, max_retries=3))
    with pytest.raises(UnavailableError, match="x: the store failed: .*503"):
        few.get("x")
    assert len(faulty.injected) == 4
    none = Store.open(remote.url, replace(SETTINGS, max_retries=0))
    with pytest.raises(UnavailableError, match="x: the store failed"):
        none.put("x", b"")
    assert len(faulty.injected) == 5


def test_errors_that_stay_are_not_tried_again(remote: Store, faulty: FaultyProxy) -> None:
    seen: list[str] = []
    faulty.decide = lambda method, path: seen.append(method)  # type: ignore[func-returns-value]
    with pytest.raises(NotFoundError):
        remote.get("none")
    assert seen == ["GET"]


@pytest.mark.parametrize("seed", range(2))
def test_counters_are_exact_under_random_failures(
    s3_store: Store, remote: Store, faulty: FaultyProxy, seed: int
) -> None:
    """Four writers, one request in five failing in any way: every reported increment is there once, and no other."""
    s3_store.put("unrelated", b"")
    documents.create(s3_store, Run(name="runs/a"))
    faulty.at_random(seed, share=0.2)

    def add(_: int) -> None:
        documents.update(remote, Run, "runs/a", lambda run: setattr(run, "step", run.step + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(24)))
    assert documents.get(s3_store, Run, "runs/a").step == 24
    assert faulty.injected
