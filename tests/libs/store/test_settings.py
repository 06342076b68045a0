from __future__ import annotations

import random
import time

import pytest

from rebus.errors import InvalidArgumentError
from rebus.store import StoreSettings


def test_the_environment_sets_fields() -> None:
    environment = {"REBUS_STORE_MAX_RETRIES": "3", "REBUS_STORE_REQUEST_TIMEOUT_S": "2.5", "REBUS_STORE": "s3://x"}
    found = StoreSettings.from_environment(environment)
    assert found == StoreSettings(max_retries=3, request_timeout_s=2.5)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("MAX_RETRIES", "-1", "at least 0, found -1"),
        ("MAX_RETRIES", "2.5", "a number, found '2.5'"),
        ("REQUEST_TIMEOUT_S", "0", "more than 0, found 0.0"),
        ("RETRY_TIMEOUT_S", "nan", "more than 0, found nan"),
        ("CONNECT_TIMEOUT_S", "inf", "more than 0, found inf"),
        ("PART_BYTES", "1", "at least 5242880, found 1"),
    ],
)
def test_a_bad_value_is_named(variable: str, value: str, expected: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"REBUS_STORE_{variable}: expected {expected}") as caught:
        StoreSettings.from_environment({f"REBUS_STORE_{variable}": value})
    assert caught.value.violations[0].field == f"REBUS_STORE_{variable}"


def test_waits_grow_at_random_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    settings = StoreSettings(max_retries=200, init_backoff_s=0.1, max_backoff_s=2, retry_timeout_s=1e9)
    assert list(settings.attempts(random.Random(0))) == list(range(201))
    bounds = [min(2, 0.1 * 2**number) for number in range(1, 201)]
    assert all(0 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert max(waits) > 1.9  # drawn from the whole interval
    assert min(waits[10:]) < 0.1
    list(settings.attempts(random.Random(1)))
    assert waits[:200] != waits[200:]


def test_no_attempt_begins_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda wait: clock.__setitem__(0, clock[0] + wait))
    settings = StoreSettings(max_retries=1000, init_backoff_s=1, max_backoff_s=1, retry_timeout_s=10)
    count = len(list(settings.attempts(random.Random(0))))
    assert 10 <= count < 40
    assert clock[0] <= 10
