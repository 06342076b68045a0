"""A run as a job: from the stored ``Run`` to published checkpoints, through a kill."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from torch import Tensor

from rebus.config import to_plain
from rebus.data import contamination_gate
from rebus.data.dataset import write_version
from rebus.data.sample import Sample, Segment
from rebus.errors import CancelledError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from rebus.jobs.context import JobContext
from rebus.jobs.events import EventLog
from rebus.models.io import load_tensors
from rebus.store import Store, documents, lineage, manifests, model_versions
from rebus.training import job
from rebus.training.checkpoints import CheckpointStore
from rebus.training.runs import checked_run
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.training_pb2 import Run
from tests.libs.training.scenes_run import RECIPE, samples


def new_run(store: Store, name: str = "runs/tiny", **changes: object) -> Run:
    version = write_version(store, "datasets/scenes", samples())
    recipe = yaml.safe_dump(to_plain({**RECIPE, **changes}))
    return documents.create(store, Run(name=name, recipe=recipe, datasets={"scenes": version.name}))


def execute(store: Store, folder: Path, name: str = "runs/tiny") -> Run:
    context = JobContext(store, name, folder)
    job.run(context)
    context.flush()
    return documents.get(store, Run, name)


def losses(store: Store, name: str) -> dict[int, float]:
    """Loss by step, as the events tell it; a step done twice counts as done last."""
    found: dict[int, float] = {}
    for event in EventLog(store, name).read():
        if event.kind == "metrics":
            values = json_format.MessageToDict(event.values)
            told, last = values["losses"], int(values["step"])
            found.update(zip(range(last - len(told) + 1, last + 1), told, strict=True))
    return found


def test_a_run_leaves_its_checkpoint_its_mixture_and_its_metrics(store: Store, tmp_path: Path) -> None:
    new_run(store)
    run = execute(store, tmp_path / "cache")
    assert run.step == 11
    assert run.checkpoint == "runs/tiny/checkpoints/step-11"
    shares = {share.source: share for share in run.mixture}
    assert (shares["captions"].num_samples, shares["all"].num_samples) == (26, 18)
    version = documents.get(store, type(documents.get(store, Run, run.name)), run.name).datasets["scenes"]
    assert {share.dataset_version for share in run.mixture} == {version}
    assert all(len(share.dataset_digest) == 64 for share in run.mixture)
    assert {"loss", "tokens_per_second", "data_wait_share", "grad_norm"} <= set(run.metrics)
    assert manifests.verify(store, run.checkpoint) == []
    assert sorted(losses(store, run.name)) == list(range(1, 12))
    # Two are kept: the last of the rhythm and the last of all.
    assert CheckpointStore(store, run.name, keep=2, cache_dir=tmp_path).steps() == [11, 8]


def test_data_that_hold_a_benchmark_stop_the_run_before_its_first_step(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [dataclasses.replace(sample, id=f"held-{sample.id}", split="test") for sample in samples()[:3]]
    other = [Sample(id=f"new{at}", split="test", segments=[Segment(text=f"never seen {at} " * 9)]) for at in range(7)]
    write_version(store, "datasets/bench", [*held, *other])
    gate = {"benchmark": "datasets/bench", "split": "test", "by": ["text"], "max_share": 0.2}
    new_run(store, benchmarks=[gate])

    with pytest.raises(
        FailedPreconditionError,
        match=r"hold 30.0% of datasets/bench/versions/1 \(test\), more than 20.0%: 3 of 10 .*held-.*`contamination`",
    ):
        execute(store, tmp_path / "cache")

    run = documents.get(store, Run, "runs/tiny")
    (report,) = run.contamination
    assert (report.benchmark_version, report.num_seen, report.num_items) == ("datasets/bench/versions/1", 3, 10)
    assert report.max_share == 0.2
    assert (run.step, run.checkpoint) == (0, "")
    attributes = lineage.walk(store, run.name).nodes[0].attributes
    assert attributes["contamination/datasets/bench/versions/1 test"] == "30.0% of 10 items seen (3), by text"

    monkeypatch.setattr(contamination_gate, "held_items", None)  # a resumed run looks nothing up again
    with pytest.raises(FailedPreconditionError, match="hold 30.0%"):
        execute(store, tmp_path / "cache")


def test_a_gate_that_lets_the_data_pass_is_in_the_lineage_of_the_model(store: Store, tmp_path: Path) -> None:
    write_version(store, "datasets/bench", [Sample(id="new", segments=[Segment(text="never seen " * 9)])])
    run = new_run(store, benchmarks=[{"benchmark": "datasets/bench/versions/1", "max_share": 0}])
    execute(store, tmp_path / "cache", run.name)
    documents.update(store, Run, run.name, lambda document: setattr(document.job, "state", JobStatus.SUCCEEDED))

    version = model_versions.register(store, "models/m", run.name)

    attributes = lineage.walk(store, version.name).nodes[0].attributes
    assert attributes["contamination/datasets/bench/versions/1"] == "0.0% of 1 items seen (0), by text, image"


@pytest.mark.parametrize(
    ("gate", "error", "message"),
    [
        ({"benchmark": "scenes", "split": "tset"}, InvalidArgumentError, r"recipe.benchmarks.0.split: .*'tset'"),
        ({"benchmark": "scene"}, InvalidArgumentError, "datasets.scene: the recipe reads a dataset 'scene'"),
        ({"benchmark": "datasets/none"}, NotFoundError, "recipe.benchmarks.0.benchmark: no datasets/none"),
        ({"benchmark": "datasets/x/1"}, InvalidArgumentError, "recipe.benchmarks.0.benchmark: expected datasets/<id>"),
        ({"benchmark": "scenes", "max_share": 2}, InvalidArgumentError, "max_share=2.0 is outside"),
        ({"benchmark": "scenes", "by": []}, InvalidArgumentError, "by must name"),
    ],
)
def test_a_gate_that_cannot_be_checked_is_refused_at_once(
    store: Store, gate: dict[str, object], error: type[Exception], message: str
) -> None:
    run = new_run(store, benchmarks=[gate])
    with pytest.raises(error, match=message):
        checked_run(store, run)


def test_the_newest_version_is_fixed_when_the_run_is_created(store: Store) -> None:
    run = new_run(store, benchmarks=[{"benchmark": "datasets/scenes"}, {"benchmark": "scenes", "split": "train"}])
    checked = checked_run(store, run)
    assert dict(checked.benchmark_versions) == dict.fromkeys(
        ("datasets/scenes", "scenes"), "datasets/scenes/versions/1"
    )


def test_a_seed_of_the_run_goes_before_the_recipes(store: Store, tmp_path: Path) -> None:
    first = new_run(store)
    for name, seed in (("runs/a", 5), ("runs/b", 5), ("runs/c", 6)):
        documents.create(store, Run(name=name, recipe=first.recipe, datasets=first.datasets, seed=seed))
        execute(store, tmp_path / name, name)
    assert losses(store, "runs/a") == losses(store, "runs/b") != losses(store, "runs/c")


@pytest.mark.slow
def test_sigkill_at_a_random_step_then_resume_changes_nothing(store: Store, tmp_path: Path) -> None:
    """The bar: every later loss and the final weights equal the uninterrupted run's bit for bit."""
    first_stage, second_stage = RECIPE["stages"]
    packs = {"batch_size": 1, "pack": {"max_tokens": 420, "max_images": 4, "buffer": 8}, "mixer": {"name": "odm"}}
    changes = {
        "stages": [{**first_stage, "steps": 20}, {**second_stage, "steps": 60, **packs}],
        "task": {**RECIPE["task"], "encoding": {"max_length_tokens": 420, "max_images": 4}},
        "checkpoint": {"every_steps": 7},
        "report_every_steps": 1,
    }
    first = new_run(store, **changes)
    documents.create(store, Run(name="runs/whole", recipe=first.recipe, datasets=first.datasets))
    execute(store, tmp_path / "whole", "runs/whole")

    target = random.Random(os.urandom(8)).randint(10, 70)
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, store.url, "runs/tiny", str(tmp_path / "killed"), str(target)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        process.wait(timeout=300)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = documents.get(store, Run, "runs/tiny").step
    assert done < 80, f"killed too late (step {target})"

    run = execute(store, tmp_path / "killed")
    assert run.step == 80
    whole = documents.get(store, Run, "runs/whole")
    left, right = (_tensors(store, r.checkpoint, tmp_path / "check") for r in (run, whole))
    assert all(left[name].equal(right[name]) for name in right), f"killed at step {target}"
    told = losses(store, "runs/tiny")
    assert told.items() <= losses(store, "runs/whole").items(), f"killed at step {target}"
    assert set(range(done + 1, 81)) <= told.keys()
    assert run.mixture == whole.mixture


def _tensors(store: Store, checkpoint: str, cache: Path) -> dict[str, Tensor]:
    with manifests.fetch(store, checkpoint, cache) as folder:
        return load_tensors(folder / "model/model.safetensors")


# Kills itself without warning once the given step is done.
_CHILD = """
import os, signal, sys
from pathlib import Path
from rebus.jobs.context import JobContext
from rebus.store import Store
from rebus.training import job

class Context(JobContext):
    def progress(self, fraction, message=""):
        super().progress(fraction, message)
        if round(fraction * 80) >= int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)

job.run(Context(Store.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
"""


def test_a_cancelled_run_goes_on_from_its_checkpoint(store: Store, tmp_path: Path) -> None:
    new_run(store)
    context = JobContext(store, "runs/tiny", tmp_path / "cache")
    published = CheckpointStore.publish

    def publish_then_stop(self: CheckpointStore, step: int, folder: Path) -> str:
        context.stop()
        return published(self, step, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "publish", publish_then_stop)
        with pytest.raises(CancelledError):
            job.run(context)
    assert documents.get(store, Run, "runs/tiny").step == 4
    assert execute(store, tmp_path / "cache").step == 11


def test_a_half_written_or_damaged_checkpoint_is_passed_over(store: Store, tmp_path: Path) -> None:
    new_run(store)
    execute(store, tmp_path / "cache")
    checkpoints = CheckpointStore(store, "runs/tiny", keep=2, cache_dir=tmp_path / "other")
    store.put("runs/tiny/checkpoints/step-99/model/model.safetensors", b"half")
    assert checkpoints.steps() == [11, 8]
    store.put("runs/tiny/checkpoints/step-11/model/model.safetensors", b"altered")
    with checkpoints.latest() as latest:
        assert latest is not None
        assert '"step": 8' in (latest / "state.json").read_text()


def test_what_is_missing_is_named(store: Store, tmp_path: Path) -> None:
    run = new_run(store)
    cases = [
        (Run(name="runs/unbound", recipe=run.recipe), InvalidArgumentError, r"run.datasets.scenes"),
        (
            Run(name="runs/gone", recipe=run.recipe, datasets={"scenes": "datasets/scenes/versions/9"}),
            NotFoundError,
            "versions/9",
        ),
        (
            Run(name="runs/typo", recipe=run.recipe.replace("batch_size", "batchsize"), datasets=run.datasets),
            InvalidArgumentError,
            r"recipe.stages.0.batchsize: unknown key; did you mean 'batch_size'",
        ),
        (
            Run(name="runs/empty", recipe=run.recipe.replace("/captioned", "/caption"), datasets=run.datasets),
            InvalidArgumentError,
            r"recipe.data.captions: no row of datasets/scenes/versions/1",
        ),
    ]
    for document, error, message in cases:
        documents.create(store, document)
        with pytest.raises(error, match=message):
            execute(store, tmp_path / "cache", document.name)
