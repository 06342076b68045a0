"""A disk without space: the error names the path and says so, nothing is torn, and all works again with space.

``python -m tools.chaos.disk_full --seed 1`` mounts a small tmpfs, for which it must be root; otherwise it says that it
was skipped and ends with code 77.

In every round the disk is filled up to a few bytes and all kinds of writes are tried. Each must succeed or fail with
``ResourceExhaustedError`` that names what was written and "no space"; what was acknowledged must be there, what failed
must have changed nothing, and ``fsck`` must find nothing. Then space is made and everything must succeed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rebus.errors import ResourceExhaustedError
from rebus.jobs.events import EventKind, EventLog
from rebus.store import Store, documents, maintenance, manifests
from rebus.v1.dataset_pb2 import Dataset

SKIPPED = 77
DISK_BYTES = 16 << 20
_PART_BYTES = 300_000
_DATASET = "datasets/d"


@contextmanager
def small_disk(size: int = DISK_BYTES) -> Iterator[Path]:
    """A tmpfs of ``size`` bytes; ``PermissionError`` if this process may not mount one."""
    with tempfile.TemporaryDirectory(prefix="rebus-disk-") as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", folder]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
            raise PermissionError("mounting a tmpfs needs root")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


class Driver:
    """Fills the disk, tries every kind of write, and compares the store with what was acknowledged."""

    def __init__(self, disk: Path, elsewhere: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        self._disk, self._elsewhere = disk, elsewhere
        self._store = Store.open((disk / "store").as_uri())
        self._objects: dict[str, bytes] = {}
        self._published: set[str] = set()
        self._events, self._updated, self._fetched, self._number = 0, 0, 0, 0
        self.refused: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        documents.create(self._store, Dataset(name=_DATASET))
        self._publish("first")

    def round(self) -> None:
        """One disk that fills up and one that has space again."""
        ballast = self._fill(self._rng.choice((0, 4096, 20_000, 100_000, 250_000)))
        for _ in range(6):
            for operation in self._rng.sample(self._operations(), len(self._operations())):
                self._attempt(operation, full=True)
        self._check()
        ballast.unlink()
        for operation in self._operations():
            self._attempt(operation, full=False)
        self._check()
        self._clear()

    def _operations(self) -> list[Callable[[str], None]]:
        return [self._put, self._create, self._stream, self._publish, self._append, self._update, self._fetch]

    def _fill(self, spare: int) -> Path:
        """Takes all space but about ``spare`` bytes, from outside the store."""
        ballast = self._disk / "ballast"
        status = os.statvfs(self._disk)
        with ballast.open("wb") as file:
            file.write(bytes(max(0, status.f_bavail * status.f_frsize - spare)))
        return ballast

    def _attempt(self, operation: Callable[[str], None], *, full: bool) -> None:
        self._number += 1
        kind, name = operation.__name__.strip("_"), str(self._number)
        try:
            operation(name)
            self.done[kind] += 1
        except ResourceExhaustedError as error:
            self.refused[kind] += 1
            if not full:
                self.wrong.append(f"{kind}: refused with space: {error}")
            if "no space left" not in str(error) or "/" not in str(error):
                self.wrong.append(f"{kind}: unclear: {error}")
        except Exception as error:
            self.wrong.append(f"{kind}: {type(error).__name__}: {error}")

    def _data(self) -> bytes:
        return self._rng.randbytes(self._rng.choice((10, 5_000, _PART_BYTES)))

    def _put(self, name: str) -> None:
        path, data = f"objects/put-{self._rng.randrange(4)}", self._data()
        self._store.put(path, data)
        self._objects[path] = data

    def _create(self, name: str) -> None:
        path, data = f"objects/create-{name}", self._data()
        self._store.create(path, data)
        self._objects[path] = data

    def _stream(self, name: str) -> None:
        path, data = f"objects/stream-{self._rng.randrange(4)}", self._data()
        self._store.put_stream(path, [data[: len(data) // 2], data[len(data) // 2 :]])
        self._objects[path] = data

    def _publish(self, name: str) -> None:
        with tempfile.TemporaryDirectory(dir=self._elsewhere) as folder:
            for part in ("a", "b"):
                (Path(folder) / part).write_bytes(self._data())
            manifests.publish_folder(self._store, f"runs/{name}/checkpoints/step-1", Path(folder))
        self._published.add(f"runs/{name}/checkpoints/step-1")

    def _append(self, name: str) -> None:
        EventLog(self._store, _DATASET).append([(EventKind.LOG, {"message": "x" * 1000})])
        self._events += 1

    def _update(self, name: str) -> None:
        documents.update(self._store, Dataset, _DATASET, lambda dataset: setattr(dataset, "description", name))
        self._updated = int(name)

    def _fetch(self, name: str) -> None:
        """Through a cache on the full disk."""
        with manifests.fetch(self._store, self._rng.choice(sorted(self._published)), self._disk / "cache"):
            self._fetched += 1

    def _check(self) -> None:
        for path, data in self._objects.items():
            if self._store.get(path) != data:
                self.wrong.append(f"{path} is not what was acknowledged")
        names = {info.path for info in self._store.list("objects")}
        self.wrong += [f"{path} is there and was refused" for path in sorted(names - self._objects.keys())]
        sequence = [event.sequence for event in EventLog(self._store, _DATASET).read()]
        if sequence != list(range(1, self._events + 1)):
            self.wrong.append(f"{self._events} events were acknowledged, {len(sequence)} are there")
        if documents.get(self._store, Dataset, _DATASET).description != (str(self._updated) if self._updated else ""):
            self.wrong.append("the document is not the one that was acknowledged")
        self.wrong += [f"{name}: {line}" for name in self._published for line in manifests.verify(self._store, name)]
        self.wrong += [f"{info.path} was left half written" for info in self._store.staged()]
        self.wrong += [f"fsck: {problem.path}: {problem.description}" for problem in maintenance.fsck(self._store)]

    def _clear(self) -> None:
        """Makes room for the next round."""
        for path in self._objects:
            self._store.delete(path)
        self._objects.clear()
        for name in sorted(self._published)[1:]:
            self._store.delete_prefix(name)
            self._published.discard(name)


def run(seed: int, rounds: int) -> dict[str, object]:
    """Counts by kind of write, and all that was wrong."""
    with small_disk() as disk, tempfile.TemporaryDirectory() as elsewhere:
        driver = Driver(disk, Path(elsewhere), seed)
        for _ in range(rounds):
            driver.round()
        return {"done": dict(driver.done), "refused": dict(driver.refused), "wrong": driver.wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    try:
        result = run(args.seed, args.rounds)
    except PermissionError as error:
        print(f"SKIPPED: {error}")
        return SKIPPED
    print(json.dumps({"seed": args.seed, "rounds": args.rounds, "passed": not result["wrong"], **result}))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
