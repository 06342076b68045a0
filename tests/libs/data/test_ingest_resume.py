"""An ingestion that dies at any point and begins again gives what an undisturbed one gives, and leaves nothing over."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rebus.data import dataset as datasets
from rebus.data import intake, jobs, staging, versions
from rebus.data.dataset import open_version
from rebus.data.journal import Journal
from rebus.data.quarantine import read_quarantine
from rebus.data.readers import base, pictures
from rebus.errors import AbortedError, CancelledError, InvalidArgumentError
from rebus.jobs import status
from rebus.jobs.context import JobContext
from rebus.store import Store, documents, maintenance
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import DatasetVersion, Ingestion, Source

DATASET = "datasets/x"
NUM_IMAGES = 8
NUM_TEXTS = 5
# With the bad ones: two whole stretches, and one that finds the end.
NUM_ITEMS, STRETCH = 13, 5
WAIT_SECONDS = 60.0


class KilledError(BaseException):
    """Stands for a process that dies at this point: nothing catches it."""


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBUS_INGEST_STRETCH_SAMPLES", str(STRETCH))
    monkeypatch.setenv("REBUS_INGEST_BATCH_ROWS", "3")


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Pictures with every fifth one broken, and texts of which one is longer than allowed."""
    return _sources(tmp_path, NUM_IMAGES, 24)


def _sources(tmp_path: Path, num_images: int, side: int) -> list[Source]:
    folder = tmp_path / "pets"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,caption"]
    for number in range(num_images):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
        data = buffer.getvalue()
        (folder / f"{number}.png").write_bytes(data[: len(data) // 2] if number % 5 == 3 else data)
        lines.append(f"{number}.png,pet {number}")
    (folder / "captions.csv").write_text("\n".join(lines))
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join("x" * 99 if n == 2 else f"line {n}" for n in range(NUM_TEXTS)))
    text = Source(reader="text", uri=str(texts))
    text.settings.update({"unit": "line", "limits": {"max_text_chars": 50}})
    return [Source(reader="image-folder", uri=str(folder)), text]


def _context(store: Store, sources: list[Source], tmp_path: Path, **fields: Any) -> JobContext:
    wanted = Ingestion(dataset=DATASET, sources=sources, **{"max_bad_share": 0.4, **fields})
    return JobContext(store, status.create(store, wanted)[0].name, tmp_path / "cache")


def _outcome(store: Store, name: str) -> tuple[Any, ...]:
    """All that an ingestion gives; dataset and job differ between two of them."""
    done = documents.get(store, Ingestion, name)
    reader = open_version(store, done.dataset_version)
    assert reader.verify() == []
    listed = [(item.location, item.reason) for item in read_quarantine(store, name)]
    version = reader.version
    counts = (done.num_samples, done.num_quarantined, version.num_samples, version.num_media, dict(version.sources))
    return list(reader.scan()), listed, counts


def _leftovers(store: Store, name: str) -> list[str]:
    """Staged rows and stretches that no version needs."""
    stretches = [info.path for info in store.scan(f"{name}/stretches")]
    done = documents.get(store, Ingestion, name)
    needed: set[str] = set()
    if done.dataset_version:
        version = open_version(store, done.dataset_version).version
        for fragment in versions.open_lance(store, DATASET, version.lance_version).get_fragments():
            needed |= {f"{DATASET}/data.lance/data/{file.path}" for file in fragment.data_files()}
    rows = {info.path for info in store.scan(f"{DATASET}/data.lance/data")}
    return stretches + sorted(rows - needed)


@pytest.fixture
def expected(tmp_path: Path, sources: list[Source]) -> tuple[Any, ...]:
    """What an undisturbed ingestion gives."""
    undisturbed = Store.open((tmp_path / "undisturbed").as_uri())
    ctx = _context(undisturbed, sources, tmp_path)
    jobs.run_ingestion(ctx)
    assert _leftovers(undisturbed, ctx.name) == []
    outcome = _outcome(undisturbed, ctx.name)
    assert [len(part) for part in outcome[:2]] == [7 + 4, 1 + 1]
    return outcome


# Every step that leaves something behind, in order, and how often an undisturbed run takes it.
_STEPS = [
    (staging, "stage", 3),
    (Journal, "append", 3),
    (staging, "commit", 1),
    (versions.manifests, "publish", 1),
    (versions.documents, "create", 1),
    (jobs, "write_quarantine", 1),
    (jobs, "_conclude", 1),
    (Journal, "close", 1),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("owner", "function", "times"), _STEPS)
def test_death_at_any_step_changes_nothing(
    store: Store,
    sources: list[Source],
    expected: tuple[Any, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    function: str,
    times: int,
    after: bool,
) -> None:
    ctx = _context(store, sources, tmp_path)
    real = getattr(owner, function)
    calls = 0

    def dies(*args: Any, **kwargs: Any) -> Any:
        """At every other call."""
        nonlocal calls
        calls += 1
        result = real(*args, **kwargs) if after or calls % 2 == 0 else None
        if calls % 2:
            raise KilledError
        return result

    deaths = 0
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, dies)
        for _ in range(2 * times + 2):
            try:
                jobs.run_ingestion(ctx)
                break
            except KilledError:
                deaths += 1

    jobs.run_ingestion(ctx)  # one attempt more, after the end
    assert deaths >= times // 2 or deaths == 1
    assert _outcome(store, ctx.name) == expected
    assert len(list(documents.list_all(store, DatasetVersion, parent=DATASET))) == 1
    cut_off = (function, after) in {("stage", True), ("append", False)}  # rows without their stretch are gc's to find
    assert len(_leftovers(store, ctx.name)) == (deaths if cut_off else 0)


def test_what_was_read_is_not_read_again(
    store: Store, sources: list[Source], expected: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    real = pictures.checked_image

    def counted(data: bytes, name: str, limits: base.ReaderLimits) -> bytes:
        decoded.append(name)
        return real(data, name, limits)

    monkeypatch.setattr(pictures, "checked_image", counted)
    monkeypatch.setenv("REBUS_INGEST_WORKERS", "0")
    ctx = _context(store, sources, tmp_path)
    stage = staging.stage

    def stops(*args: Any, **kwargs: Any) -> Any:
        rows = stage(*args, **kwargs)
        ctx.stop()  # the machine goes down during the first stretch
        return rows

    monkeypatch.setattr(staging, "stage", stops)
    attempts = 0
    while not ctx.document(Ingestion).dataset_version:
        ctx = JobContext(store, ctx.name, tmp_path / "cache")
        attempts += 1
        try:
            jobs.run_ingestion(ctx)
        except CancelledError:
            assert len(list(read_quarantine(store, ctx.name))) == ctx.document(Ingestion).num_quarantined
    assert attempts == 4  # the last one has only to publish
    assert decoded == [f"{n}.png" for n in range(NUM_IMAGES)]
    assert _outcome(store, ctx.name) == expected


def test_sources_that_changed_are_read_from_the_beginning(
    store: Store, sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = _context(store, sources, tmp_path)
    _die_after_stretch(ctx, monkeypatch)
    table = tmp_path / "pets" / "captions.csv"
    rows = table.read_text().split("\n")[1:]
    table.write_text("\n".join(["image,caption", "", *reversed(rows)]))  # rows stand on other lines

    jobs.run_ingestion(ctx)

    kept = [s.segments[1].text for s in open_version(store, ctx.document(Ingestion).dataset_version).scan() if s.media]
    assert kept == [f"pet {n}" for n in reversed(range(NUM_IMAGES)) if n % 5 != 3]
    assert _leftovers(store, ctx.name) == []


def _die_after_stretch(ctx: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Journal.append

    def dies(*args: Any) -> None:
        real(*args)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", dies)
        with pytest.raises(KilledError):
            jobs.run_ingestion(ctx)


def test_gc_leaves_what_a_live_job_staged_and_takes_what_a_dead_one_did(
    store: Store, sources: list[Source], expected: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = _context(store, sources, tmp_path)
    assert status.transition(store, ctx.name, JobStatus.RUNNING)
    _die_after_stretch(ctx, monkeypatch)
    staged = _leftovers(store, ctx.name)
    assert len(staged) == 2

    assert maintenance.garbage(store, grace=timedelta(seconds=-60)) == []
    status.transition(store, ctx.name, JobStatus.FAILED)
    found = maintenance.garbage(store, grace=timedelta(seconds=-60))
    assert {info.path for info in found} >= set(staged)
    # Half of it goes, as when gc itself is killed: the job must not trust the rest.
    maintenance.collect(store, [info for info in found if info.path.endswith(".lance")])
    assert _leftovers(store, ctx.name) == [path for path in staged if path.endswith(".json")]

    status.requeue(store, ctx.name)
    jobs.run_ingestion(ctx)
    assert _outcome(store, ctx.name) == expected
    assert _leftovers(store, ctx.name) == []


def test_a_process_that_was_given_up_and_comes_back_is_stopped(
    store: Store, sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = _context(store, sources, tmp_path)
    stage = staging.stage

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        rows = stage(*args, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(staging, "stage", stage)
            _die_after_stretch(ctx, monkeypatch)
        return rows

    monkeypatch.setattr(staging, "stage", overtaken)
    with pytest.raises(AbortedError, match="another process goes on with it"):
        jobs.run_ingestion(ctx)


def test_a_job_that_failed_for_its_sources_reads_them_anew(store: Store, sources: list[Source], tmp_path: Path) -> None:
    ctx = _context(store, sources, tmp_path, max_bad_share=0.01)
    with pytest.raises(InvalidArgumentError, match="2 of 13 samples are bad, more than max_bad_share=0.01"):
        jobs.run_ingestion(ctx)
    assert _leftovers(store, ctx.name) == []
    (tmp_path / "pets" / "3.png").write_bytes((tmp_path / "pets" / "0.png").read_bytes())
    (tmp_path / "texts.txt").write_text("short")

    jobs.run_ingestion(ctx)

    assert ctx.document(Ingestion).num_samples == NUM_IMAGES + 1
    assert list(read_quarantine(store, ctx.name)) == []


def test_threads_change_nothing(
    store: Store, sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for count in ("0", "3"):
        monkeypatch.setenv("REBUS_INGEST_WORKERS", count)
        ctx = _context(store, sources, tmp_path)
        jobs.run_ingestion(ctx)
        outcomes.append(_outcome(store, ctx.name))
    assert outcomes[0] == outcomes[1]


def test_a_source_that_breaks_keeps_what_came_before(
    store: Store, sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = _context(store, sources, tmp_path)
    real = intake._finished

    def breaks(run: list[Any]) -> Any:
        if any(getattr(item, "location", "") == "captions.csv:6" for item in run):
            raise OSError("the disk is gone")
        return real(run)

    with monkeypatch.context() as patch:
        patch.setattr(intake, "_finished", breaks)
        with pytest.raises(OSError, match="the disk is gone"):
            jobs.run_ingestion(ctx)

    assert Journal(store, ctx.name, DATASET).last.position.last == "captions.csv:5"
    assert ctx.document(Ingestion).num_quarantined == len(list(read_quarantine(store, ctx.name))) == 1
    jobs.run_ingestion(ctx)
    assert ctx.document(Ingestion).num_samples == 11


def test_a_number_of_bad_samples_stops_the_job_at_once(store: Store, sources: list[Source], tmp_path: Path) -> None:
    ctx = _context(store, sources[:1], tmp_path, max_bad_samples=0)

    with pytest.raises(InvalidArgumentError, match="1 of 4 samples are bad, more than max_bad_samples=0 allows: capt"):
        jobs.run_ingestion(ctx)
    assert _leftovers(store, ctx.name) == []


@pytest.mark.slow
def test_real_processes_killed_at_random_points(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    sources = _sources(tmp_path, 200, 160)
    monkeypatch.setenv("REBUS_INGEST_STRETCH_SAMPLES", "20")
    undisturbed = Store.open((tmp_path / "undisturbed").as_uri())
    whole = _context(undisturbed, sources, tmp_path)
    jobs.run_ingestion(whole)
    ctx = _context(store, sources, tmp_path)
    grown: list[int] = []
    for _ in range(5):
        before = Journal(store, ctx.name, DATASET).count
        _run_and_kill(store, ctx.name, tmp_path, stretches=before + rng.randint(1, 2), delay=rng.uniform(0, 0.05))
        grown.append(Journal(store, ctx.name, DATASET).count - before)
        if status.job_of(ctx.document(Ingestion)).state == JobStatus.SUCCEEDED:
            break
        status.transition(store, ctx.name, JobStatus.FAILED)
        status.requeue(store, ctx.name)
    # It was killed with stretches behind it, and went on from there: on a busy machine, to its end.
    assert grown[0] > 0
    if ctx.document(Ingestion).job.state != JobStatus.SUCCEEDED:
        jobs.run_ingestion(ctx)

    assert _outcome(store, ctx.name) == _outcome(undisturbed, whole.name)
    assert len(list(documents.list_all(store, DatasetVersion, parent=DATASET))) == 1
    assert not [path for path in _leftovers(store, ctx.name) if path.endswith(".json")]


def _run_and_kill(store: Store, name: str, tmp_path: Path, *, stretches: int, delay: float) -> None:
    """Runs the job's worker until so many stretches are there, and kills it a moment later."""
    command = [sys.executable, "-m", "rebus.jobs.worker", "--store", store.url, "--name", name]
    worker = subprocess.Popen([*command, "--cache-dir", str(tmp_path / "cache")], env={**os.environ})
    deadline = time.monotonic() + WAIT_SECONDS
    while worker.poll() is None and time.monotonic() < deadline:
        if len(list(store.scan(f"{name}/stretches"))) >= stretches:
            time.sleep(delay)
            worker.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    worker.wait(WAIT_SECONDS)


def test_append_extends_the_latest_version(
    store: Store, sources: list[Source], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    first = _context(store, sources[:1], tmp_path, append=True)  # nothing to extend yet
    jobs.run_ingestion(first)
    assert first.document(Ingestion).base_version == ""
    before = {info.path: info.last_modified for info in store.scan(f"{DATASET}/data.lance/data")}
    second = _context(store, [sources[0], sources[1]], tmp_path, append=True, max_bad_share=0.9)

    jobs.run_ingestion(second)

    done = second.document(Ingestion)
    assert done.base_version == f"{DATASET}/versions/1"
    assert (done.num_samples, done.num_quarantined) == (4, 7 + 1 + 1)
    reader = open_version(store, done.dataset_version)
    assert list(reader.scan()) == expected[0]
    assert (reader.version.num_samples, reader.version.parent) == (11, done.base_version)
    after = {info.path: info.last_modified for info in store.scan(f"{DATASET}/data.lance/data")}
    assert before.items() <= after.items()  # nothing was written again
    reasons = [item.reason for item in read_quarantine(store, second.name)]
    assert reasons.count("an earlier sample has this id") == 7


def test_a_killed_append_keeps_to_the_version_it_found(
    store: Store, sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.run_ingestion(_context(store, sources[:1], tmp_path))
    ctx = _context(store, sources[1:], tmp_path, append=True)
    _die_after_stretch(ctx, monkeypatch)
    jobs.run_ingestion(_context(store, sources[:1], tmp_path))  # version 2

    jobs.run_ingestion(ctx)

    assert ctx.document(Ingestion).base_version == f"{DATASET}/versions/1"
    version = open_version(store, f"{DATASET}/versions/3").version
    assert (version.num_samples, version.parent) == (11, f"{DATASET}/versions/1")


@pytest.mark.slow
def test_resume_and_append_on_s3(
    s3_store: Store, sources: list[Source], expected: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = _context(s3_store, sources[:1], tmp_path)
    for _ in range(2):
        _die_after_stretch(ctx, monkeypatch)
    jobs.run_ingestion(ctx)
    more = _context(s3_store, sources[1:], tmp_path, append=True)
    _die_after_stretch(more, monkeypatch)
    jobs.run_ingestion(more)

    reader = datasets.open_version(s3_store, more.document(Ingestion).dataset_version)
    assert list(reader.scan()) == expected[0]
    assert reader.verify() == []
    assert _leftovers(s3_store, more.name) == []
