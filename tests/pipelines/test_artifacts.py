from __future__ import annotations

from pathlib import Path

from kfp import dsl

from pipelines import artifacts
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.evaluation_pb2 import Prediction, Score


def test_a_resource_survives_its_artifact(tmp_path: Path) -> None:
    version = DatasetVersion(name="datasets/x/versions/3", digest="ab", splits={"train": 5}, num_samples=5)
    artifact = dsl.Dataset(name="version", uri=str(tmp_path / "version"))
    artifacts.write(artifact, version)
    assert artifact.metadata == {"name": "datasets/x/versions/3", "digest": "ab"}
    assert artifacts.read(artifact, DatasetVersion) == version


def test_score_table_shows_scores_beside_their_baselines_and_escapes() -> None:
    score = Score(benchmark="<b>", group="color", metric="exact_match", value=0.91, low=0.88, high=0.94, num_items=120)
    score.chance = 0.125
    page = artifacts.score_table("a & b", [score])
    row = page[page.index("<tbody>") : page.index("</tbody>")]
    cells = [cell.partition("</td>")[0] for cell in row.split("<td>")[1:]]
    assert cells == ["&lt;b&gt;", "color", "exact_match", "0.910", "0.880 to 0.940", "0.125", "-", "-", "120"]
    assert "<title>a &amp; b</title>" in page


def test_score_key_leaves_out_an_empty_group() -> None:
    assert artifacts.score_key(Score(benchmark="b", group="g", metric="m")) == "b/g/m"
    assert artifacts.score_key(Score(benchmark="b", metric="m")) == "b/m"


def test_confusion_counts_references_by_answers() -> None:
    pairs = [("red", "red"), ("red", "blue"), ("blue", "blue"), ("blue", "blue"), ("blue", "a cat")]
    items = [Prediction(references=[reference], prediction=answer) for reference, answer in pairs]
    labels, matrix = artifacts.confusion(items)
    assert labels == ["blue", "red", "other"]
    assert matrix == [[2, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_confusion_keeps_the_commonest_labels() -> None:
    items = [Prediction(references=[f"{label:02}"], prediction="x") for label in range(40) for _ in range(1 + label)]
    labels, matrix = artifacts.confusion(items)
    assert labels == [*(f"{label:02}" for label in range(8, 40)), "other"]
    assert sum(matrix[-1]) == sum(range(1, 9))
    assert sum(map(sum, matrix)) == len(items)
