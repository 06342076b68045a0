"""Admission: how many calls run at once, how many wait, and who is asked to come again.

A pool of places bounds calls and the bytes of their requests, of all and of each principal. A call that finds no place
waits in a bounded queue, first come, first served; a principal that has all it may have lets the others pass. What
cannot wait, or waited too long, is refused with ``RESOURCE_EXHAUSTED`` and a ``RetryInfo``, before any work is done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from rebus.errors import ResourceExhaustedError
from services.harness.auth.principal import ANONYMOUS, current_principal
from services.harness.limits import Limits, PoolLimits
from services.harness.policies import Pool


@lru_cache(1024)
def peer_host(peer: str) -> str:
    """Who calls, as far as the connection tells: the address of gRPC's ``peer`` without its port."""
    kind, _, address = peer.partition(":")
    if kind in ("ipv4", "ipv6"):
        return unquote(address.rpartition(":")[0])
    return ANONYMOUS.name


def caller(context: Any) -> str:
    """Who a call counts for: its authenticated principal, or its address where a server asks for no credentials."""
    principal = current_principal()
    return peer_host(context.peer() or "") if principal is ANONYMOUS else principal.name


@dataclass(eq=False)
class _Waiter:
    principal: str
    size: int
    admitted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(slots=True)
class _Share:
    """What one principal has of a pool, and how many of its calls wait."""

    running: int = 0
    bytes: int = 0
    waiting: int = 0


class Places:
    """The places of one pool. Used by one event loop."""

    def __init__(self, limits: PoolLimits) -> None:
        self.limits = limits
        # What runs and what waits now.
        self.running = 0
        self.bytes = 0
        self._shares: dict[str, _Share] = {}
        self._queue: deque[_Waiter] = deque()

    @property
    def queued(self) -> int:
        """Calls that wait."""
        return len(self._queue)

    def try_take(self, principal: str, size: int) -> bool:
        """Takes a place at once if there is one and nobody who may have one waits for it."""
        if self._queue and any(self._may_have(waiter.principal, waiter.size) for waiter in self._queue):
            return False  # somebody waits for more room than there is, and must not be passed over for ever
        return self._take(principal, size)

    async def take(self, principal: str, size: int, seconds: float) -> None:
        """Takes a place, waiting up to ``seconds`` (or the pool's own bound); ``ResourceExhaustedError`` without."""
        if self.try_take(principal, size):
            return
        limits = self.limits
        if self.queued >= limits.queued or self._share(principal).waiting >= limits.queued_per_principal:
            raise self._refusal("the queue is full")
        waiter = _Waiter(principal, size)
        self._queue.append(waiter)
        share = self._shares[principal] = self._share(principal)
        share.waiting += 1
        try:
            async with asyncio.timeout(min(seconds, limits.wait_seconds)):
                await waiter.admitted
        except TimeoutError:
            if not _was_admitted(waiter):
                raise self._refusal("no place became free in time") from None
        except asyncio.CancelledError:
            if _was_admitted(waiter):
                self.give_back(principal, size)
            raise
        finally:
            if waiter in self._queue:
                self._leave(waiter)
                self._admit_waiting()

    def give_back(self, principal: str, size: int) -> None:
        """Frees a place and gives it to the first that waits and may have it."""
        self.running -= 1
        self.bytes -= size
        share = self._shares[principal]
        share.running -= 1
        share.bytes -= size
        self._forget(principal, share)
        if self._queue:
            self._admit_waiting()

    def _take(self, principal: str, size: int) -> bool:
        """Takes a place if there is one that the principal may have. Every call comes here: it is all in one frame."""
        limits, share = self.limits, self._shares.get(principal)
        if share is None:
            share = _Share()
        if (
            self.running >= limits.concurrent
            or self.bytes + size > limits.bytes
            or share.running >= limits.concurrent_per_principal
            or share.bytes + size > limits.bytes_per_principal
        ):
            return False
        self._shares[principal] = share
        self.running += 1
        self.bytes += size
        share.running += 1
        share.bytes += size
        return True

    def _share(self, principal: str) -> _Share:
        return self._shares.get(principal) or _Share()

    def _forget(self, principal: str, share: _Share) -> None:
        """Principals that have nothing are forgotten: their number is not bounded."""
        if not (share.running or share.waiting):
            del self._shares[principal]

    def _may_have(self, principal: str, size: int) -> bool:
        limits = self.limits
        share = self._share(principal)
        return share.running < limits.concurrent_per_principal and share.bytes + size <= limits.bytes_per_principal

    def _admit_waiting(self) -> None:
        """Admits in order; stops at the first for whom there is no room, so that a large request is not passed over."""
        for waiter in list(self._queue):
            if waiter.admitted.done() or not self._may_have(waiter.principal, waiter.size):
                continue  # done: cancelled, and about to leave
            if not self._take(waiter.principal, waiter.size):
                return
            self._leave(waiter)
            waiter.admitted.set_result(None)

    def _leave(self, waiter: _Waiter) -> None:
        self._queue.remove(waiter)
        share = self._shares[waiter.principal]
        share.waiting -= 1
        self._forget(waiter.principal, share)

    def _refusal(self, why: str) -> ResourceExhaustedError:
        seconds = self.limits.retry_seconds
        return ResourceExhaustedError(
            f"the server is at its limits: {why}; retry in {seconds:g} s", retry_seconds=seconds
        )


def _was_admitted(waiter: _Waiter) -> bool:
    """Whether the place came at the moment when the wait ended otherwise."""
    return waiter.admitted.done() and not waiter.admitted.cancelled()


class Admission:
    """The pools of one server, and who a call counts for."""

    def __init__(self, limits: Limits | None = None, *, principal: Callable[[Any], str] = caller) -> None:
        self.limits = limits or Limits()
        self.principal = principal
        self.pools: dict[Pool, Places] = {
            "calls": Places(self.limits.calls),
            "watches": Places(self.limits.watches),
            "uploads": Places(self.limits.uploads),
        }

    @property
    def queued(self) -> int:
        """Calls that wait in all pools; any thread may ask."""
        return sum(places.queued for places in self.pools.values())
