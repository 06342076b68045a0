"""Leases with fencing tokens: one writer at a time, and one that was paused too long cannot write.

A lease and the value that it guards are one object, so every acquisition, renewal and write is one compare-and-swap
on it. Whoever acquires it takes the next token, which changes the object: a write that an earlier holder prepared,
however long ago, no longer finds the object that it read. For something larger than a value, write its parts below a
folder of the token's own and let the value name that folder.

Nobody compares clocks of two machines. A holder counts its time to live from before it sent its last renewal, on its
own monotonic clock; a waiting one calls a lease expired once it has itself seen the object unchanged for that time.
What is assumed is that the clocks of both run at about the same rate: the waiting one multiplies the time by ``DRIFT``.
Safety does not rest on that; it rests on the compare-and-swap.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from rebus import config as configs
from rebus.errors import (
    AbortedError,
    AlreadyExistsError,
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    invalid,
)
from rebus.store.objects import Store
from rebus.store.sealed import seal, unseal

DRIFT = 1.05
MAX_TTL_S = 3600.0
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class LeaseState:
    """The stored object: who holds the lease, under which token, and the guarded value."""

    # Grows with every acquisition, never repeats.
    token: int = 0
    # Empty when released.
    holder: str = ""
    ttl_s: float = 0.0
    # Grows with every renewal, so that waiting ones see a change.
    renewals: int = 0
    value: Any = None


def read(store: Store, path: str) -> LeaseState:
    """The lease's state and value; one that nobody ever took has token 0."""
    try:
        return _decode(store.get(path), path)
    except NotFoundError:
        return LeaseState()


class Lease:
    """A lease that this process took. Not for use by several threads at once."""

    def __init__(self, store: Store, path: str, state: LeaseState, tag: str, since: float) -> None:
        self._store, self._path = store, path
        self._state, self._tag, self._since = state, tag, since

    @property
    def token(self) -> int:
        """The fencing token: greater than that of every earlier holder."""
        return self._state.token

    @property
    def value(self) -> Any:
        """The guarded value, as found when the lease was taken or as written since."""
        return self._state.value

    @property
    def remaining_s(self) -> float:
        """Seconds until others may take it, at the earliest; negative if they may already have."""
        return self._since + self._state.ttl_s - time.monotonic()

    def renew(self) -> None:
        """Starts the time to live anew; ``AbortedError`` if another holder has taken the lease."""
        self._change(replace(self._state, renewals=self._state.renewals + 1))

    def write(self, value: Any) -> None:
        """Replaces the guarded value (JSON), in the same step in which the token is compared; renews, too.

        ``AbortedError`` if another holder has taken the lease: then nothing was written.
        """
        self._change(replace(self._state, renewals=self._state.renewals + 1, value=value))

    def release(self) -> None:
        """Lets others take the lease at once; no error if one has already."""
        try:
            self._change(replace(self._state, holder=""))
        except AbortedError:
            return

    def _change(self, state: LeaseState) -> None:
        since = time.monotonic()
        try:
            self._tag = self._store.swap(self._path, _encode(state), self._tag)
        except (AbortedError, NotFoundError):
            raise AbortedError(
                f"{self._path}: the lease with token {self.token} was taken by another holder",
                metadata={"path": self._path, "token": str(self.token)},
            ) from None
        self._state, self._since = state, since


def acquire(store: Store, path: str, *, ttl_s: float, wait_s: float = 0.0, holder: str = "") -> Lease:
    """Takes the lease at ``path``, waiting up to ``wait_s`` for its holder to release it or to stop renewing it.

    ``DeadlineExceededError`` if it is still held then. A dead holder's lease is recognised by watching it for its whole
    time to live, so ``wait_s`` below that finds only released ones.
    """
    if not 0 < ttl_s <= MAX_TTL_S:
        raise invalid("ttl_s", f"expected more than 0 and at most {MAX_TTL_S}, found {ttl_s}")
    holder = holder or f"{socket.gethostname()}-{secrets.token_hex(4)}"
    deadline = time.monotonic() + wait_s
    seen_tag, seen_at = "", 0.0
    while True:
        state, tag = _tagged(store, path)
        if tag != seen_tag:
            seen_tag, seen_at = tag, time.monotonic()
        if not state.holder or time.monotonic() - seen_at > state.ttl_s * DRIFT:
            lease = _take(store, path, state, tag, ttl_s, holder)
            if lease is not None:
                return lease
        elif time.monotonic() > deadline:
            raise DeadlineExceededError(f"{path} is held by {state.holder}", metadata={"path": path})
        else:
            time.sleep(min(_POLL_S, state.ttl_s / 4))


@contextmanager
def held(store: Store, path: str, *, ttl_s: float, wait_s: float = 0.0) -> Iterator[Lease]:
    """Takes a lease as ``acquire`` does and releases it when the block ends."""
    lease = acquire(store, path, ttl_s=ttl_s, wait_s=wait_s)
    try:
        yield lease
    finally:
        lease.release()


def _take(store: Store, path: str, state: LeaseState, tag: str, ttl_s: float, holder: str) -> Lease | None:
    """The lease under the next token; ``None`` if another one was faster."""
    since = time.monotonic()
    new = replace(state, token=state.token + 1, holder=holder, ttl_s=ttl_s, renewals=0)
    try:
        taken = store.swap(path, _encode(new), tag) if tag else store.create(path, _encode(new))
    except (AbortedError, AlreadyExistsError, NotFoundError):
        return None
    return Lease(store, path, new, taken, since)


def _tagged(store: Store, path: str) -> tuple[LeaseState, str]:
    try:
        data, tag = store.get_tagged(path)
    except NotFoundError:
        return LeaseState(), ""
    return _decode(data, path), tag


def _encode(state: LeaseState) -> bytes:
    return seal(asdict(state))


def _decode(data: bytes, path: str) -> LeaseState:
    try:
        return configs.build(LeaseState, unseal(data, path), where=path)
    except InvalidArgumentError as error:
        raise DataLossError(f"{path}: not a lease: {error}", metadata={"path": path}) from None
