"""Observers of the store see each operation once, with its outcome."""

from __future__ import annotations

import pytest

from rebus.errors import AlreadyExistsError, NotFoundError
from rebus.store import Store
from rebus.store.observation import observing


def test_each_operation_is_seen_once_with_its_outcome(store: Store) -> None:
    seen: list[tuple[str, str]] = []

    def observer(operation: str, outcome: str, seconds: float) -> None:
        assert seconds > 0
        seen.append((operation, outcome))

    with observing(observer):
        store.put("a/x", b"1")
        _, tag = store.get_tagged("a/x")
        store.swap("a/x", b"2", tag)  # reads and writes by itself
        with pytest.raises(AlreadyExistsError):
            store.create("a/x", b"3")
        with pytest.raises(NotFoundError):
            store.get("a/y")
        assert [info.path for info in store.list("a")] == ["a/x"]
    store.get("a/x")  # nobody looks any more
    assert seen == [
        ("put", "OK"),
        ("get_tagged", "OK"),
        ("swap", "OK"),
        ("create", "ALREADY_EXISTS"),
        ("get", "NOT_FOUND"),
        ("list", "OK"),
    ]


def test_a_listing_that_nobody_reads_to_its_end_is_seen_too(store: Store) -> None:
    seen: list[str] = []
    store.put("a/x", b"1")
    store.put("a/y", b"1")
    with observing(lambda operation, outcome, seconds: seen.append(operation)):
        listing = store.list("a")
        next(listing)
        store.get("a/x")  # in between, and on its own account
        listing.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert seen == ["get", "list"]
