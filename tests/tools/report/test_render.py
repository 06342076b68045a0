"""The page read back: its numbers, its pictures, its escaping, its independence."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest

from rebus.v1.evaluation_pb2 import Evaluation, Prediction, Score
from rebus.v1.model_pb2 import Lineage, LineageEdge, LineageNode
from tests.parsed_page import Parsed
from tests.tiny_model import png
from tools.report import data, render

RED, BLUE = png((200, 0, 0)), png((0, 0, 200))
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def uri(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def report(text: str = "a red cube") -> data.ReportData:
    """A report of every part, ``text`` in every place where data or a model speaks."""
    scores = [
        Score(
            benchmark="scene-questions", group="color", metric="exact_match", value=0.8125, low=0.75, high=0.875,
            num_items=64, chance=0.125, majority=0.25, text_only=0.1875,
        ),
        Score(benchmark=text, metric="cider_d", value=3.25, low=3.0, high=3.5, num_items=9),
        Score(benchmark="scene-questions", group="mean", metric="exact_match_gain_over_text_only", value=-0.0625),
    ]  # fmt: skip
    prediction = Prediction(question=text, prediction=text, references=[text], text_only_prediction=text, score=0.625)
    nodes = [
        LineageNode(name="evaluations/e", kind="evaluation", digest="ab" * 32, attributes={text: text}),
        LineageNode(name=f"source:{text}", kind="source"),
    ]
    edge = LineageEdge(**{"from": nodes[0].name, "to": nodes[1].name, "relation": text})
    answers = [data.Answered(prediction=prediction, right=right, pictures=[BLUE]) for right in (True, False, None)]
    hits = [
        data.Hit(picture=RED, label=text, score=0.875, right=True),
        data.Hit(picture=BLUE, label=text, score=0.5, right=False),
    ]
    return data.ReportData(
        title=text,
        subtitle=text,
        facts={text: text},
        samples=[
            data.SampleGrid(
                title=text,
                facts={"samples": "12"},
                cards=[data.SampleCard(pictures=[RED, BLUE], caption=text, questions=[(text, text)])],
            )
        ],
        runs=[
            data.RunPanel(
                name=text,
                facts={"steps": "40"},
                curves=[
                    data.Curve(name=text, points=[(20, 2.0), (40, 1.0)]),
                    data.Curve(name="loss/b", points=[(20, 1.5), (40, float("nan"))]),
                    data.Curve(name="empty", points=[]),
                ],
                stages=[data.Stage(name=text, end=20), data.Stage(name="tuning", end=40)],
            )
        ],
        evaluations=[data.EvaluationPanel(evaluation=Evaluation(scores=scores), answers={text: answers})],
        searches=[
            data.SearchPanel(
                title=text,
                searches=[data.Neighbours(hits=hits, text=text), data.Neighbours(hits=hits[1:], picture=RED)],
            )
        ],
        lineages=[Lineage(nodes=nodes, edges=[edge])],
    )


def test_numbers_are_on_the_page() -> None:
    text = Parsed(render(report())).text
    for number in ("0.812", "0.750", "0.875", "0.125", "0.250", "0.188", "64", "3.250", "-0.062", "0.625"):
        assert number in text, number


def test_every_picture_is_inlined() -> None:
    images = Parsed(render(report())).find("img")
    sources = [image["src"] for image in images]
    # Two of the card, three answers, three hits, one query.
    assert sorted(sources) == sorted([uri(RED), uri(BLUE), *[uri(BLUE)] * 3, uri(RED), *[uri(BLUE)] * 2, uri(RED)])
    assert all(image["alt"] for image in images)


def test_what_data_and_models_say_is_escaped_everywhere() -> None:
    hostile, tame = Parsed(render(report(HOSTILE))), Parsed(render(report("tame")))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags]
    names = [sorted(attributes) for _, attributes in hostile.tags]
    assert names == [sorted(attributes) for _, attributes in tame.tags]
    assert hostile.text.count("<script>alert(1)</script>") > 10


def test_the_page_asks_nothing_of_any_network() -> None:
    parsed = Parsed(render(report()))
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "form"), tag
        for name in ("src", "href", "action", "data", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
    policy = next(m["content"] for m in parsed.find("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_answers_are_marked() -> None:
    parsed = Parsed(render(report()))
    marks = [a["class"] for a in parsed.find("span") if a.get("class", "").startswith("mark-")]
    assert marks == ["mark-right", "mark-wrong", "mark-graded"]
    assert parsed.text.count("expected:") == 2


def test_marks_stand_where_the_values_are() -> None:
    """The axis of a chart of values up to 1 runs over 580 units from 270; 0.125, 0.1875 and 0.8125 lie on it."""
    parsed = Parsed(render(report()))
    bar = next(a for a in parsed.find("rect") if a.get("class") == "bar")
    assert (float(bar["x"]), float(bar["width"])) == (270, pytest.approx(580 * 0.8125, abs=0.06))
    chance = [a["d"] for a in parsed.find("path") if a.get("class") == "mark chance"]
    assert any(d.startswith(f"M{270 + 580 * 0.125} ") for d in chance)
    rings = [float(a["cx"]) for a in parsed.find("circle") if a.get("class") == "mark text-only"]
    assert any(x == pytest.approx(270 + 580 * 0.1875, abs=0.06) for x in rings)


def test_empty_parts_are_left_out() -> None:
    parsed = Parsed(render(data.ReportData(title="nothing yet")))
    assert parsed.find("section") == []
    assert parsed.find("a") == []


def test_bytes_that_are_no_image_never_become_markup() -> None:
    grid = data.SampleGrid(title="t", cards=[data.SampleCard(pictures=[b"<svg onload=alert(1)>"], caption="c")])
    images = Parsed(render(data.ReportData(title="t", samples=[grid]))).find("img")
    assert images[0]["src"].startswith("data:application/octet-stream;base64,")


def test_importing_the_report_loads_no_torch() -> None:
    code = "import sys, tools.report; sys.exit(any(name.split('.')[0] in ('torch', 'lance') for name in sys.modules))"
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
