"""A large synthetic dataset: ingestion beside two peers, memory over its course, random access, a column, an append.

``python -m tools.bench.ingest --rows 1000000`` prints tables and one line of JSON. Every row has a caption of about 60
characters; every tenth also a PNG of 16 x 16 pixels, which the ingestion decodes to check it. Ours is the real job:
threads that check, unique ids, hashes, stretches, publication with the SHA-256 of every object. The peers do none of
that: WebDataset's ``ShardWriter`` writes id, text and picture into tar files, pyarrow's ``ParquetWriter`` (the floor)
into one Parquet file. Each runs in a process of its own, one after the other; CPU time says more than wall time where
the machine has other work.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rebus.data import jobs
from rebus.data.dataset import derive_version, open_version
from rebus.data.readers.base import Draft, DraftingReader, Quarantined, ReaderLimits, attempt, checked_image
from rebus.data.sample import Sample, Segment
from rebus.jobs import status
from rebus.jobs.context import JobContext
from rebus.registry import register
from rebus.store import Store
from rebus.v1.dataset_pb2 import Ingestion, Source

DATASET = "datasets/synthetic"
READER = "bench-synthetic"
OURS, WEBDATASET, PARQUET = "rebus", "webdataset", "parquet"
IMAGE_EVERY = 10
NUM_IMAGES = 64
IMAGE_SIDE = 16
SAMPLE_SECONDS = 0.2
WARM_UP = 500
PARQUET_ROWS = 4096
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Which rows to make."""

    num_rows: int = 1000
    first: int = 0


@register("reader", READER, config=SyntheticConfig)
class SyntheticReader(DraftingReader):
    """Captions, and a tiny picture with every tenth."""

    # Rows made so far, for whoever watches.
    made = 0

    def __init__(self, config: SyntheticConfig, location: None) -> None:
        self._config = config
        self._images = _images()

    def drafts(self) -> Iterator[Draft | Sample | Quarantined]:
        for number in range(self._config.first, self._config.first + self._config.num_rows):
            type(self).made = number - self._config.first
            if number % IMAGE_EVERY:
                yield attempt(str(number), lambda number=number: _sample(number, []))
            else:
                yield Draft(str(number), lambda number=number: _sample(number, [self._image(number)]))

    def _image(self, number: int) -> bytes:
        return checked_image(self._images[number // IMAGE_EVERY % NUM_IMAGES], str(number), ReaderLimits())


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--accesses", type=int, default=2000, help="Random rows read one by one.")
    parser.add_argument("--folder", type=Path, help="Where to write; default: a temporary folder.")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder, options.rows, options.accesses)))
        return
    with tempfile.TemporaryDirectory(prefix="rebus-bench-", dir=options.folder) as folder:
        results = {part: _run(part, Path(folder), options) for part in PARTS}
    _print(results, options.rows)
    print(json.dumps({"bench": "ingest", "rows": options.rows, "results": results}))


def _run(part: str, folder: Path, options: argparse.Namespace) -> Result:
    command = [sys.executable, "-m", "tools.bench.ingest", "--part", part, "--folder", str(folder)]
    command += ["--rows", str(options.rows), "--accesses", str(options.accesses)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _ours(folder: Path, rows: int, accesses: int) -> Result:
    store = Store.open((folder / "store").as_uri())
    with _Memory(rows) as memory:
        result = _timed(rows, lambda: _ingest(store, folder, rows))
    version = f"{DATASET}/versions/1"
    stored = _stored_bytes(store)
    result |= {"memory_mb": memory.by_tenth, "memory_deviation": memory.deviation, "bytes": stored}
    result["access_ms"] = _access(store, version, rows, accesses)
    score = pa.array(np.arange(rows) % 97, pa.int32())
    result["column"] = _timed(rows, lambda: derive_version(store, version, columns={"score": score}))
    result["column"]["bytes"] = _stored_bytes(store) - stored
    stored, extra = _stored_bytes(store), max(1, rows // 100)
    result["append"] = _timed(extra, lambda: _ingest(store, folder, extra, first=rows))
    result["append"]["bytes"] = _stored_bytes(store) - stored
    return result


def _ingest(store: Store, folder: Path, rows: int, *, first: int = 0) -> None:
    source = Source(reader=READER)
    source.settings.update({"num_rows": rows, "first": first})
    wanted = Ingestion(dataset=DATASET, sources=[source], append=first > 0)
    jobs.run_ingestion(JobContext(store, status.create(store, wanted)[0].name, folder / "cache"))


def _access(store: Store, version: str, rows: int, accesses: int) -> Result:
    """Milliseconds to read one row anywhere, whole, once the version is open and the system has its files cached."""
    reader = open_version(store, version)
    picked = np.random.default_rng(0).integers(0, rows, WARM_UP + accesses)
    times = []
    for row in picked:
        start = time.perf_counter()
        (sample,) = reader.take([int(row)])
        times.append(1000 * (time.perf_counter() - start))
        assert sample.id == _id(int(row))
    return {name: float(np.percentile(times[WARM_UP:], p)) for name, p in (("median", 50), ("p99", 99))}


def _webdataset(folder: Path, rows: int, accesses: int) -> Result:
    from webdataset.writer import ShardWriter

    images = _images()
    (folder / "shards").mkdir()

    def write() -> None:
        with ShardWriter(str(folder / "shards" / "%06d.tar"), maxsize=1 << 30, verbose=0) as shards:
            for number in range(rows):
                sample: dict[str, Any] = {"__key__": f"{number:09d}", "txt": _caption(number)}
                if number % IMAGE_EVERY == 0:
                    sample["png"] = images[number // IMAGE_EVERY % NUM_IMAGES]
                shards.write(sample)

    return _timed(rows, write) | {"bytes": _folder_bytes(folder / "shards")}


def _parquet(folder: Path, rows: int, accesses: int) -> Result:
    images = _images()
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("image", pa.binary())])

    def row(number: int) -> dict[str, Any]:
        image = images[number // IMAGE_EVERY % NUM_IMAGES] if number % IMAGE_EVERY == 0 else None
        return {"id": _id(number), "text": _caption(number), "image": image}

    def write() -> None:
        with pq.ParquetWriter(folder / "rows.parquet", schema) as writer:
            for start in range(0, rows, PARQUET_ROWS):
                made = [row(number) for number in range(start, min(start + PARQUET_ROWS, rows))]
                writer.write_table(pa.Table.from_pylist(made, schema=schema))

    return _timed(rows, write) | {"bytes": (folder / "rows.parquet").stat().st_size}


PARTS: dict[str, Callable[[Path, int, int], Result]] = {OURS: _ours, WEBDATASET: _webdataset, PARQUET: _parquet}


class _Memory:
    """Watches this process's resident memory while rows are made."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._seen: list[tuple[int, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(SAMPLE_SECONDS):
            self._seen.append((10 * SyntheticReader.made // self._rows, process.memory_info().rss / 1e6))

    @property
    def by_tenth(self) -> list[float]:
        """Mean MB while each tenth of the rows was made, the first left out; nothing of a tenth that was too short."""
        found = ([mb for tenth, mb in self._seen if tenth == wanted] for wanted in range(1, 10))
        return [float(np.mean(values)) for values in found if values]

    @property
    def deviation(self) -> float:
        """The largest distance from the mean of the tenths, as a share of it."""
        tenths = np.array(self.by_tenth or [np.nan])
        return float(np.abs(tenths / tenths.mean() - 1).max())


def _timed(rows: int, work: Callable[[], object]) -> Result:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": wall, "rows_per_s": rows / wall, "cpu_us_per_row": 1e6 * cpu / rows}


def _id(number: int) -> str:
    return f"synthetic/{number:09d}"


def _caption(number: int) -> str:
    return f"picture {number} shows {number % 7} birds above {number % 11} houses by the sea"


def _sample(number: int, media: list[bytes]) -> Sample:
    shown = [Segment(type="image", media=0)] if media else []
    text = Segment(text=_caption(number), role="assistant", loss=True, task="caption")
    return Sample(id=_id(number), family=_id(number), segments=[*shown, text], media=media, source="synthetic")


def _images() -> list[bytes]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(NUM_IMAGES):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)).save(buffer, "PNG")
        made.append(buffer.getvalue())
    return made


def _stored_bytes(store: Store) -> int:
    return sum(info.size for info in store.scan(DATASET))


def _folder_bytes(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder))


def _print(results: dict[str, Result], rows: int) -> None:
    ours = results[OURS]
    print(f"{rows} rows, {rows // IMAGE_EVERY} with a picture")
    print(f"{'':<12} {'seconds':>8} {'rows/s':>9} {'CPU us/row':>11} {'MB':>7} {'x rows/s':>9} {'x CPU':>6}")
    for name, result in results.items():
        print(
            f"{name:<12} {result['seconds']:>8.1f} {result['rows_per_s']:>9.0f} {result['cpu_us_per_row']:>11.1f} "
            f"{result['bytes'] / 1e6:>7.1f} {ours['rows_per_s'] / result['rows_per_s']:>9.2f} "
            f"{ours['cpu_us_per_row'] / result['cpu_us_per_row']:>6.2f}"
        )
    tenths = " ".join(f"{mb:.0f}" for mb in ours["memory_mb"])
    print(
        f"memory of ours from 10 % of the rows on, MB: {tenths} (at most {ours['memory_deviation']:.1%} off the mean)"
    )
    print(f"one row anywhere, warm: median {ours['access_ms']['median']:.2f} ms, p99 {ours['access_ms']['p99']:.2f} ms")
    for name in ("column", "append"):
        part = ours[name]
        share = part["bytes"] / ours["bytes"]
        print(f"{name}: {part['seconds']:.1f} s, {part['bytes'] / 1e6:.2f} MB written, {share:.2%} of the dataset")


if __name__ == "__main__":
    main()
