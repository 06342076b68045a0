"""Commands that start jobs: what is kept, what is left out, and what Ctrl-C does."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from rebus.client import Client
from rebus.v1.common_pb2 import JobEvent
from tests.tools.rebus.conftest import Command
from tools.rebus import follow

# Jobs outlive the command that starts them, so their handles are dropped while they may still run.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(autouse=True)
def _drop_handles() -> Iterator[None]:
    """Within the test's own filter for warnings."""
    yield
    gc.collect()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eleven good captioned pictures, a truncated one, one without caption, one that is not there."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = ["image,caption"]
    for number in range(11):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,red of strength {number}")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:45])
    rows += ["cut.png,a cut one", "1.png,", "gone.png,a missing one"]
    (folder / "captions.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.slow
def test_bad_samples_are_left_out_and_listed(rebus: Command, pictures: Path, tmp_path: Path) -> None:
    done = rebus("ingest", "image-folder", pictures, "--dataset", "reds", "--max-bad-share", 0.5)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["dataset", "version", "datasets/reds/versions/1"]
    left_out = [line for line in done.stderr.splitlines() if line.startswith("left out: ")]
    assert [line.split(": ")[1] for line in left_out] == ["captions.csv:13", "captions.csv:14", "captions.csv:15"]
    for line, reason in zip(left_out, ("truncated PNG", "caption: is empty", "no such file"), strict=True):
        assert reason in line
    assert [line.split()[0] for line in rebus("datasets", "quarantine", "latest").stdout.splitlines()[1:]] == [
        "captions.csv:13",
        "captions.csv:14",
        "captions.csv:15",
    ]
    saved = rebus("datasets", "samples", "reds", "--save", tmp_path / "saved", "--limit", 3)
    assert saved.exit_code == 0
    assert len(list((tmp_path / "saved").glob("*.png"))) == 3


@pytest.mark.slow
def test_too_many_bad_samples_fail_in_one_line(rebus: Command, pictures: Path) -> None:
    failed = rebus("ingest", "image-folder", pictures, "--dataset", "reds", "--max-bad-share", 0.1)
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert failed.exit_code == 1
    assert len(errors) == 1
    assert "3 of 14 samples are bad" in errors[0]
    assert json.loads(rebus("datasets", "versions", "reds", "-f", "json").stdout) == []

    table = (pictures / "captions.csv").read_text().split("\n")
    (pictures / "captions.csv").write_text("\n".join(table[:5]))  # mended: the good rows alone
    assert rebus("datasets", "resume", "latest").exit_code == 0
    (pictures / "captions.csv").write_text("\n".join(table[:7]))
    more = rebus("ingest", "image-folder", pictures, "-d", "reds", "--max-bad-share", 1, "--append", "-f", "json")
    assert more.stderr.count("an earlier sample has this id") == 4
    assert json.loads(more.stdout)["base_version"] == "datasets/reds/versions/1"
    shown = json.loads(rebus("datasets", "versions", "reds", "-f", "json").stdout)
    assert sorted(int(version["num_samples"]) for version in shown) == [4, 6]


def test_a_bad_source_is_refused_in_one_line_before_anything_runs(rebus: Command, tmp_path: Path) -> None:
    def refusal(*arguments: Any) -> str:
        result = rebus("ingest", *arguments, "--dataset", "d")
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        return result.stderr.strip()

    assert refusal("scene") == "error: ingestion.sources[0].reader: unknown reader 'scene'; did you mean 'scenes'?"
    assert refusal("scenes", "--set", "num_scene=3") == (
        "error: ingestion.sources[0].settings.num_scene: unknown key; did you mean 'num_scenes'?"
    )
    missing = tmp_path / "none"
    assert refusal("image-folder", missing) == f"error: ingestion.sources[0].uri: no such path: {missing}"


def test_a_bad_recipe_is_refused_in_one_line(rebus: Command, history: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nsteps: 3\ndata: {main: {dataset: d}}\ntask: {name: mllm}\nstages: []\n")
    refused = rebus("train", recipe, "--dataset", "d")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("error: recipe.steps: unknown key; did you mean 'stages'?")
    assert rebus("train", tmp_path / "no.yaml", "--dataset", "d").stderr == (
        f"error: recipe: no such file: {tmp_path}/no.yaml\n"
    )
    recipe.write_text("data: {a: {dataset: one}, b: {dataset: two}}\n")
    assert rebus("train", recipe, "--dataset", "d").stderr == (
        "error: --dataset: the recipe reads one, two; say NAME=VERSION\n"
    )


def test_ctrl_c_leaves_the_job_running_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(Client):
        def __init__(self) -> None:
            pass

        def wait(self, name: str, *, on_event: Any = None) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        follow.follow(Interrupted(), "runs/x")
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == (
        "runs/x goes on; watch it: rebus runs watch runs/x; stop it: rebus runs cancel runs/x\n"
    )


def test_lines_show_progress_with_metrics(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(follow, "LINE_SECONDS", 0.0)
    follower = follow._Follower(follow.LineView("runs/x"))
    for kind, values in (
        ("state", {"state": "RUNNING"}),
        ("progress", {"progress": 0.25, "message": "step 5 of 20"}),
        ("metrics", {"step": 5, "loss": 1.23456, "tokens_per_second": 5120.4, "data_wait_share": 0.021}),
    ):
        event = JobEvent(kind=kind)
        event.values.update(values)
        follower(event)
    assert capsys.readouterr().err.splitlines() == [
        "runs/x: 0% running",
        "runs/x: 25% step 5 of 20",
        "runs/x: 25% step 5 of 20  loss 1.235  5,120 tokens/s  data wait 2%",
    ]
