"""A curation on Ray Data says of every row what one in this process says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import psutil
import pytest

from rebus.data.curation import Curated, curate
from rebus.data.curation_on_ray import StageOnRay
from rebus.data.dataset import open_version, write_version
from rebus.data.sample import Sample, Segment
from rebus.store import Store
from tests.waiting import until

CHAIN = [
    {"name": "pii-scrub"},
    {"name": "text-length", "min_chars": 20},
    {"name": "minhash-dedup", "threshold": 0.6},
    {"name": "language-id"},
    {"name": "text-heuristics"},
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of one node in processes of its own: this one, which uses Lance, must not fork."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    folder = tmp_path_factory.mktemp("ray")
    start = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"]
    bounds = [
        "--num-cpus=2",
        "--object-store-memory=100000000",
        "--include-dashboard=false",
        "--port=0",
        "--disable-usage-stats",
    ]
    with pytest.MonkeyPatch.context() as patch, (folder / "out").open("wb") as out:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves them
        head = subprocess.Popen(
            [*start, *bounds, f"--temp-dir={folder}"], stdout=out, stderr=out, start_new_session=True
        )
        try:
            found = until(lambda: re.search(r"--address='(.+?)'", (folder / "out").read_text()))
            yield found[1]
        finally:
            for process in [*psutil.Process(head.pid).children(recursive=True), head]:
                process.kill()
            head.wait(30)


def curate_on(address: str, store_url: str, version: str) -> Curated:
    return curate(Store.open(store_url), version, CHAIN, runner=StageOnRay(address, processes=2))


@pytest.mark.slow
def test_the_result_is_that_of_one_process(store: Store, cluster: str) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{at}" for at in range(400)]
    texts = [" ".join(rng.choice(words, int(rng.integers(2, 30)))) for _ in range(9_000)]
    texts[10:60] = [f"{text} again" for text in texts[110:160]]
    texts[200:260] = [f"{text} mail a{at}@b.org" for at, text in enumerate(texts[200:260])]
    samples = [Sample(id=f"s{at:05}", segments=[Segment(text=text)]) for at, text in enumerate(texts)]
    version = write_version(store, "datasets/x", samples)

    here = curate(store, version.name, CHAIN)
    # A process that Ray has connected ends when it loses its node, whatever else it does: not the one that tests.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        there = pool.submit(curate_on, cluster, store.url, version.name).result(600)

    assert len(here.dropped) > 50
    assert there.dropped == here.dropped
    left, right = (open_version(store, curated.version.name) for curated in (here, there))
    assert left.column_names == right.column_names
    columns = [name for name in left.column_names if name != "media"]
    assert left.table(columns).equals(right.table(columns))
