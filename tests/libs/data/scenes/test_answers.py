"""Answers against an independent re-computation: the wording is parsed again and the graph searched by brute force."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

import pytest

from rebus.data.scenes.answers import answer
from rebus.data.scenes.drawing import draw_question
from rebus.data.scenes.generate import change
from rebus.data.scenes.graph import Description, Scene, SceneObject, random_scene
from rebus.data.scenes.questions import KINDS, Question

WORDS = {
    "size": ("small", "large"),
    "color": ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "gray"),
    "material": ("metal", "rubber"),
    "shape": ("sphere", "cube", "cylinder", "cone"),
}


def thing(**changes: object) -> SceneObject:
    values = {"size": "small", "color": "red", "material": "metal", "shape": "cube", "x": 0.5, "y": 0.5}
    return SceneObject(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def named(scene: Scene, phrase: str) -> list[SceneObject]:
    """Objects that have every attribute word of a noun phrase, plural or not."""
    words = [word.removesuffix("s") for word in phrase.split()]
    return [
        item
        for item in scene
        if all(any(getattr(item, name) == word for name in WORDS) for word in words if word != "object")
    ]


def grid_word(value: float, words: Sequence[str]) -> str:
    return words[0] if value < 1 / 3 else (words[1] if value < 2 / 3 else words[2])


def recompute(scenes: Sequence[Scene], text: str) -> str:
    """The answer from the wording alone, by rules written without a look at the library's."""
    scene = scenes[0]

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    def one(phrase: str) -> SceneObject:
        (found,) = named(scene, phrase)
        return found

    if match := re.fullmatch(r"is there an? (.+)\?", text):
        return yes(len(named(scene, match[1])) > 0)
    if match := re.fullmatch(r"how many (.+) are there\?", text):
        return str(len(named(scene, match[1])))
    if match := re.fullmatch(r"what (color|shape|size|material) is the (.+)\?", text):
        return getattr(one(match[2]), match[1])
    if match := re.fullmatch(r"is the (.+) larger than the (.+)\?", text):
        return yes((one(match[1]).size, one(match[2]).size) == ("large", "small"))
    if match := re.fullmatch(r"are there more (.+) than (.+)\?", text):
        return yes(len(named(scene, match[1])) > len(named(scene, match[2])))
    if match := re.fullmatch(r"do the (.+) and the (.+) have the same (\w+)\?", text):
        return yes(getattr(one(match[1]), match[3]) == getattr(one(match[2]), match[3]))
    if match := re.fullmatch(r"is the (.+) (left of|right of|above|below) the (.+)\?", text):
        a, b = one(match[1]), one(match[3])
        return yes({"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[match[2]])
    if match := re.fullmatch(r"where is the (.+)\?", text):
        item = one(match[1])
        return f"{grid_word(item.y, ('top', 'middle', 'bottom'))} {grid_word(item.x, ('left', 'center', 'right'))}"
    if text == "which image has more objects?":
        sizes = len(scenes[0]), len(scenes[1])
        return "both" if sizes[0] == sizes[1] else ["first", "second"][sizes.index(max(sizes))]
    if match := re.fullmatch(r"which image has an? (.+)\?", text):
        has = [bool(named(s, match[1])) for s in scenes]
        return "both" if all(has) else "neither" if not any(has) else ["first", "second"][has.index(True)]
    assert text == "what changed from the first image to the second?"
    before, after = Counter(scenes[0]), Counter(scenes[1])
    gone, new = list((before - after).elements()), list((after - before).elements())
    if not gone or not new:
        return "removed" if gone else "added" if new else "nothing"
    return next(
        ("position" if name in "xy" else name)
        for name in ("size", "color", "material", "shape", "x", "y")
        if getattr(gone[0], name) != getattr(new[0], name)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_equals_an_independent_recomputation(kind: str) -> None:
    rng = random.Random(kind)
    checked = 0
    for _ in range(400):
        before = random_scene(rng, 1, 5)
        scenes = [before, change(rng, before)] if kind == "difference" else [before]
        question = draw_question(rng, scenes, kind)
        if question is not None:
            assert answer(scenes, question) == recompute(scenes, question.text), (scenes, question.text)
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("kind", ["existence", "comparison", "relation"])
def test_yes_and_no_are_balanced(kind: str) -> None:
    rng = random.Random(0)
    told = Counter()
    while told.total() < 600:
        scenes = [random_scene(rng, 1, 4)]
        question = draw_question(rng, scenes, kind)
        if question is not None:
            told[answer(scenes, question)] += 1
    assert 0.44 < told["yes"] / told.total() < 0.56


def test_attributes_are_drawn_uniformly_so_that_wording_alone_tells_nothing() -> None:
    rng = random.Random(0)
    told = Counter()
    while told.total() < 1600:
        scenes = [random_scene(rng, 1, 4)]
        question = draw_question(rng, scenes, "color")
        if question is not None:
            told[answer(scenes, question)] += 1
    assert set(told) == set(WORDS["color"])
    assert max(told.values()) < 1.35 * 1600 / 8


def test_hand_worked_relation_and_its_margin() -> None:
    scene = (thing(x=0.2, y=0.5), thing(shape="cone", x=0.8, y=0.55))
    subjects = (Description(shape="cube"), Description(shape="cone"))

    def ask(word: str) -> str | None:
        return answer([scene], Question("relation", "relation", subjects, word))

    assert (ask("left of"), ask("right of")) == ("yes", "no")
    # 0.05 apart along y: a matter of three pixels, so there is no answer.
    assert (ask("above"), ask("below")) == (None, None)


def test_a_description_of_two_objects_has_no_answer() -> None:
    scene = (thing(x=0.2), thing(x=0.8, color="blue"))
    question = Question("color", "attribute", (Description(shape="cube"),), "color")
    assert answer([scene], question) is None


def test_change_of_two_objects_has_no_single_name() -> None:
    before = (thing(x=0.2), thing(x=0.8, color="blue"))
    after = (thing(x=0.2, color="green"), thing(x=0.8, color="gray"))
    assert answer([before, after], Question("difference", "changed")) is None
