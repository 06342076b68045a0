"""One holder at a time; tokens grow; a holder that slept through its time cannot write."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rebus.errors import AbortedError, DataLossError, DeadlineExceededError, InvalidArgumentError
from rebus.store import Store, leases

PATH = "leases/x.json"


def test_one_of_many_takes_it(any_store: Store) -> None:
    def attempt(_: int) -> int | None:
        try:
            return leases.acquire(any_store, PATH, ttl_s=600).token
        except DeadlineExceededError:
            return None

    with ThreadPoolExecutor(16) as pool:
        tokens = list(pool.map(attempt, range(16)))
    assert [token for token in tokens if token is not None] == [1]


def test_tokens_grow_and_the_value_stays(any_store: Store) -> None:
    assert leases.read(any_store, PATH) == leases.LeaseState()
    for number in range(1, 5):
        with leases.held(any_store, PATH, ttl_s=600) as lease:
            assert (lease.token, lease.value) == (number, None if number == 1 else number - 1)
            lease.renew()
            lease.write(number)
            assert lease.value == number
            assert 0 < lease.remaining_s <= 600
    assert leases.read(any_store, PATH).value == 4


def test_a_held_lease_is_not_taken(any_store: Store) -> None:
    leases.acquire(any_store, PATH, ttl_s=600, holder="first")
    with pytest.raises(DeadlineExceededError, match="leases/x.json is held by first"):
        leases.acquire(any_store, PATH, ttl_s=600)


def test_a_holder_that_stopped_renewing_loses_it(any_store: Store) -> None:
    old = leases.acquire(any_store, PATH, ttl_s=0.5)
    old.write("old")
    new = leases.acquire(any_store, PATH, ttl_s=600, wait_s=600)
    assert (new.token, new.value) == (2, "old")
    for change in (old.renew, lambda: old.write("stale")):
        with pytest.raises(AbortedError, match="leases/x.json: the lease with token 1 was taken by another holder"):
            change()
    old.release()
    assert old.remaining_s < 0
    new.write("new")
    assert leases.read(any_store, PATH).value == "new"


@pytest.mark.slow
def test_a_holder_that_renews_keeps_it(store: Store) -> None:
    holder = leases.acquire(store, PATH, ttl_s=3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(leases.acquire, store, PATH, ttl_s=3, wait_s=8)
        while not waiting.done():
            holder.renew()
            time.sleep(0.3)
        with pytest.raises(DeadlineExceededError):
            waiting.result()
    holder.write("kept")


def test_increments_under_leases_are_exact(any_store: Store) -> None:
    def add(_: int) -> None:
        with leases.held(any_store, PATH, ttl_s=600, wait_s=600) as lease:
            lease.write((lease.value or 0) + 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(12)))
    assert leases.read(any_store, PATH).value == 12


HOLDER = """
import sys
from rebus.errors import AbortedError
from rebus.store import Store, leases
lease = leases.acquire(Store.open(sys.argv[1]), "leases/x.json", ttl_s=1)
lease.write("first")
print("holding", flush=True)
sys.stdin.readline()
try:
    lease.write("stale")
    print("wrote", flush=True)
except AbortedError as error:
    print(error, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["store", "s3_store"])
def test_a_holder_that_was_stopped_and_goes_on_cannot_write(kind: str, request: pytest.FixtureRequest) -> None:
    """A real process under SIGSTOP while another takes the lease, then SIGCONT."""
    store: Store = request.getfixturevalue(kind)
    command = [sys.executable, "-c", HOLDER, store.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        process.send_signal(signal.SIGSTOP)
        process.stdin.write("\n")
        process.stdin.flush()
        new = leases.acquire(store, PATH, ttl_s=600, wait_s=600)
        assert (new.token, new.value) == (2, "first")
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "leases/x.json: the lease with token 1 was taken by another holder\n"
    assert leases.read(store, PATH).value == "first"
    new.write("second")


def test_bad_input_is_named(store: Store) -> None:
    for ttl_s in (0, -1, 3601, float("nan")):
        with pytest.raises(InvalidArgumentError, match="ttl_s: expected more than 0 and at most 3600"):
            leases.acquire(store, PATH, ttl_s=ttl_s)
    store.put(PATH, b"{}")
    with pytest.raises(DataLossError, match="leases/x.json"):
        leases.acquire(store, PATH, ttl_s=1)
