"""SeaweedFS killed and started again under concurrent writers: nothing acknowledged is lost, and all writers recover.

``python -m tools.chaos.seaweed_restart --seed 1``

Each writer creates objects, replaces a document by compare-and-swap, and adds to a counter that all share. A call that
returns is an acknowledged write. At the end every created object must be there with its bytes, every document must hold
its last acknowledged value, and the counter must equal the additions: one lost is too few, one applied twice too many.
Every call must have returned within its deadline, whatever happened to the server. An addition whose answer was lost,
and which more writes of others followed than the store remembers (``conditional.HISTORY``), ends as unknown, as the
store's contract says: it may be in the counter or not.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rebus.errors import AbortedError, RebusError, UnavailableError
from rebus.store import Store, StoreSettings
from rebus.store.conditional import UNKNOWN
from tools import seaweed

WRITERS = 8
# A call's deadline: no attempt begins after ``retry_timeout_s``, and the last one ends within ``request_timeout_s``.
SETTINGS = StoreSettings(
    request_timeout_s=10,
    connect_timeout_s=5,
    max_retries=1000,
    retry_timeout_s=90,
    init_backoff_s=0.05,
    max_backoff_s=2,
)
DEADLINE_S = SETTINGS.retry_timeout_s + SETTINGS.request_timeout_s
COUNTER = "counter"
_OBJECT_BYTES = 4096


@dataclass
class Writer:
    """One writer's acknowledged work, and what went wrong."""

    number: int
    created: dict[str, bytes] = field(default_factory=dict)
    value: bytes = b"0"
    added: int = 0
    unknown: int = 0
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def document(self) -> str:
        return f"documents/{self.number}"

    def work(self, store: Store, rng: random.Random, stop: threading.Event) -> None:
        """Writes until told to stop."""
        step = 0
        while not stop.is_set():
            step += 1
            operation = rng.choice((self._create, self._replace, self._add))
            start = time.monotonic()
            try:
                operation(store, rng, step)
            except RebusError as error:
                self.failures.append(f"{operation.__name__.strip('_')}: {error}")
            self.slowest_s = max(self.slowest_s, time.monotonic() - start)

    def _create(self, store: Store, rng: random.Random, step: int) -> None:
        path, data = f"objects/{self.number}/{step}", rng.randbytes(_OBJECT_BYTES)
        store.create(path, data)
        self.created[path] = data

    def _replace(self, store: Store, rng: random.Random, step: int) -> None:
        _, tag = store.get_tagged(self.document)
        value = f"{step} {rng.random()}".encode()
        store.swap(self.document, value, tag)  # nobody else writes it, so this must not be refused
        self.value = value

    def _add(self, store: Store, rng: random.Random, step: int) -> None:
        while True:
            data, tag = store.get_tagged(COUNTER)
            try:
                store.swap(COUNTER, f"{int(data) + 1}".encode(), tag)
            except AbortedError:
                continue
            except UnavailableError as error:
                if UNKNOWN not in str(error):
                    raise
                self.unknown += 1
                return
            self.added += 1
            return


def run(seed: int, kills: int, server: seaweed.Server) -> dict[str, object]:
    """Kills the server ``kills`` times under load; counts of what was acknowledged, lost, refused and slow."""
    rng = random.Random(seed)
    url = f"{server.variables['REBUS_STORE']}-{secrets.token_hex(4)}"
    store = Store.open(url, SETTINGS)
    writers = [Writer(number) for number in range(WRITERS)]
    store.put(COUNTER, b"0")
    for writer in writers:
        store.put(writer.document, b"0")
    stop = threading.Event()
    with ThreadPoolExecutor(WRITERS) as pool:
        seeds = [rng.getrandbits(32) for _ in writers]
        futures = [
            pool.submit(writer.work, Store.open(url, SETTINGS), random.Random(own), stop)
            for writer, own in zip(writers, seeds, strict=True)
        ]
        try:
            for number in range(kills):
                time.sleep(rng.uniform(1, 4))
                server.kill()
                time.sleep(rng.uniform(0, 2))
                server.start()
                server.wait_ready()
                print(f"kill {number + 1} of {kills}: {sum(len(w.created) for w in writers)} objects", flush=True)
            time.sleep(2)
        finally:
            stop.set()
        for future in futures:
            future.result()
    return _verdict(store, writers)


def _verdict(store: Store, writers: list[Writer]) -> dict[str, object]:
    lost = [path for writer in writers for path, data in writer.created.items() if not _holds(store, path, data)]
    lost += [writer.document for writer in writers if not _holds(store, writer.document, writer.value)]
    added, counted = sum(writer.added for writer in writers), int(store.get(COUNTER))
    unknown = sum(writer.unknown for writer in writers)
    return {
        "acknowledged": sum(len(writer.created) for writer in writers) + added,
        "lost": len(lost) + max(0, added - counted),
        "applied_twice": max(0, counted - added - unknown),
        "unknown": unknown,
        "failed_calls": [failure for writer in writers for failure in writer.failures],
        "slowest_call_s": round(max(writer.slowest_s for writer in writers), 2),
        "deadline_s": DEADLINE_S,
    }


def _holds(store: Store, path: str, data: bytes) -> bool:
    return store.exists(path) and store.get(path) == data


def passed(result: dict[str, object]) -> bool:
    """Whether everything held."""
    clean = not (result["lost"] or result["applied_twice"] or result["failed_calls"])
    return clean and float(str(result["slowest_call_s"])) <= DEADLINE_S


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--kills", type=int, default=5)
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with seaweed.serving() as server:
        result = run(args.seed, args.kills, server)
    print(json.dumps({"seed": args.seed, "kills": args.kills, "passed": passed(result), **result}))
    return 0 if passed(result) else 1


if __name__ == "__main__":
    raise SystemExit(main())
