"""The loader's benchmark runs, every contender reads every sample, and it reports what it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench.loader import BARS, REMOTE_BARS
from tools.bench.loading.contenders import CONTENDERS

pytest.importorskip("webdataset")


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    sizes = ["--images", "12", "--window", "12", "--shard-size", "6", "--rounds", "1", "--no-s3"]
    command = [sys.executable, "-m", "tools.bench.loader", *sizes, "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    contenders = {name for bar in BARS for name in (bar.ours, *bar.peers)}
    assert set(report["ratios"]) == {bar.name for bar in BARS}
    assert set(report["samples_per_s"]) == set(report["peak_mb"]) == contenders
    assert min(report["samples_per_s"].values()) > 0
    assert min(report["peak_mb"].values()) > 0


def test_every_bar_names_contenders_that_exist() -> None:
    assert {name for bar in (*BARS, *REMOTE_BARS) for name in (bar.ours, *bar.peers)} == set(CONTENDERS)
