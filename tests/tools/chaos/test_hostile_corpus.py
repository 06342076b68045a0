"""Hostile files beside good ones, read in a process whose memory is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from rebus import registry
from tools.chaos import hostile_corpus


def test_every_reader_has_a_corpus() -> None:
    named = set(hostile_corpus.CORPORA) | hostile_corpus.MAKERS
    assert named == {component.name for component in registry.components("reader")}


@pytest.mark.slow
def test_hostile_files_are_quarantined_and_good_ones_read_within_the_bound(tmp_path: Path) -> None:
    rows, problems = hostile_corpus.run(tmp_path)

    assert problems == []
    assert {row["reader"] for row in rows} == set(hostile_corpus.CORPORA)
