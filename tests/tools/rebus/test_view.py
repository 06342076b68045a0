"""A pipeline's progress as lines, where there is no terminal."""

from __future__ import annotations

import pytest

from pipelines.local import Progress
from tools.rebus.quickstart import view

REPORTS = [
    Progress("ingest", 0.0, "started"),
    Progress("ingest", 0.5, "half"),
    Progress("ingest", 1.0, "75 of 75"),
    Progress("train", 0.0, "started"),
]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (3600.0, ["ingest: 0% started", "train: 0% started"]),
        (0.0, ["ingest: 0% started", "ingest: 50% half", "ingest: 100% 75 of 75", "train: 0% started"]),
    ],
    ids=["rarely", "always"],
)
def test_every_step_says_that_it_started_and_then_speaks_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float, expected: list[str]
) -> None:
    monkeypatch.setattr(view, "LINE_SECONDS", seconds)
    with view.PipelineView() as shown:
        for report in REPORTS:
            shown(report)
    assert capsys.readouterr().err.splitlines() == expected
