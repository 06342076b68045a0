"""Which questions the quickstart asks live."""

from __future__ import annotations

from pathlib import Path

from rebus.v1.common_pb2 import Sample, Segment
from tools.rebus.files import caption_of, save_images
from tools.rebus.quickstart.demo import pairs

PNG = b"\x89PNG rest"


def question(branch: int, text: str) -> Segment:
    return Segment(role=Segment.USER, branch=branch, text=text)


def answer(branch: int, text: str, task: str) -> Segment:
    return Segment(role=Segment.ASSISTANT, branch=branch, text=text, task=task)


SAMPLE = Sample(
    id="a/b c",
    segments=[
        Segment(image=PNG),
        answer(1, "a red cube", "caption"),
        question(2, "how many?"),
        answer(2, "one", "count"),
        question(3, "how many cubes?"),
        answer(3, "none", "count"),
        question(4, "which color?"),
        answer(4, "red", "color"),
    ],
)


def test_one_question_of_each_kind_with_its_own_answer() -> None:
    assert list(pairs(SAMPLE)) == [("how many?", "one"), ("which color?", "red")]


def test_a_sample_is_told_by_its_caption() -> None:
    assert caption_of(SAMPLE) == "a red cube"
    assert caption_of(Sample(segments=[question(1, "first")])) == "first"
    assert caption_of(Sample()) == ""


def test_pictures_are_saved_under_a_safe_name(tmp_path: Path) -> None:
    two = Sample(id="../x", segments=[Segment(image=PNG), Segment(image=b"\xff\xd8\xff jpeg")])
    paths = save_images(two, tmp_path / "new", "001-")
    assert [path.name for path in paths] == ["001-.._x.png", "001-.._x-1.jpg"]
    assert [path.read_bytes() for path in paths] == [PNG, b"\xff\xd8\xff jpeg"]
    assert save_images(SAMPLE, tmp_path, "")[0].name == "a_b_c.png"
