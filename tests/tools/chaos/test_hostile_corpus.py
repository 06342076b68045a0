"""Hostile files beside good ones, read in a process whose memory is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.chaos import hostile_corpus


@pytest.mark.slow
def test_hostile_files_are_quarantined_and_good_ones_read_within_the_bound(tmp_path: Path) -> None:
    rows, problems = hostile_corpus.run(tmp_path)

    assert problems == []
    assert {row["reader"] for row in rows} == set(hostile_corpus.CORPORA)
