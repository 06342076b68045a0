"""Draws questions about a scene so that their wording alone tells as little as possible of the answer.

Where the answer is yes or no, a number or a choice, the answer is drawn first (uniformly) and a question that has it is
looked for; where it is an attribute, the scene's own uniform draw makes every value equally likely.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from rebus.data.scenes.answers import answer, find
from rebus.data.scenes.graph import ATTRIBUTES, RELATIONS, Description, Scene, SceneObject, describe
from rebus.data.scenes.questions import Question

_TRIES = 40
_YES_NO = ("yes", "no")
# Attribute sets a noun phrase may name, weighted by repetition: a cube, a red object, a red cube, ...
_PHRASES = (("shape",), ("color",), ("color", "shape"), ("color", "shape"), ("material", "shape"), ("size", "shape"))


def draw_question(rng: random.Random, scenes: Sequence[Scene], kind: str) -> Question | None:
    """A question of ``kind`` about ``scenes`` (two for ``difference``, else one); ``None`` if they admit none."""
    return _DRAWERS[kind](rng, scenes)


def _wanted(
    rng: random.Random, scenes: Sequence[Scene], answers: Sequence[str], propose: Callable[[], Question | None]
) -> Question | None:
    """A proposal that has the drawn answer; the answer is never traded for an easier one, which would unbalance it."""
    wanted = rng.choice(answers)
    for _ in range(_TRIES):
        question = propose()
        if question is not None and answer(scenes, question) == wanted:
            return question
    return None


def _random_description(rng: random.Random, attributes: Sequence[str], near: Scene) -> Description:
    """Values drawn half of the time from one object of ``near``, else uniformly: near misses need a close look."""
    values = {}
    item = rng.choice(near)
    for name in attributes:
        values[name] = getattr(item, name) if rng.random() < 0.5 else rng.choice(ATTRIBUTES[name])
    return Description(**values)


def _unique(rng: random.Random, scene: Scene, item: SceneObject, without: Sequence[str] = ()) -> Description | None:
    """A description that fits ``item`` alone and names none of ``without``."""
    phrases = [phrase for phrase in _PHRASES if not set(phrase) & set(without)]
    rng.shuffle(phrases)
    for phrase in phrases:
        description = describe(item, phrase)
        if len(find(scene, description)) == 1:
            return description
    return None


def _existence(rng: random.Random, scenes: Sequence[Scene]) -> Question | None:
    phrase = rng.choice(_PHRASES)

    def propose() -> Question:
        return Question("existence", "exists", (_random_description(rng, phrase, scenes[0]),))

    return _wanted(rng, scenes, _YES_NO, propose)


def _count(rng: random.Random, scenes: Sequence[Scene]) -> Question | None:
    options = [Description()]
    options += [Description(**{name: value}) for name, values in ATTRIBUTES.items() for value in values]
    by_count: dict[int, list[Description]] = {}
    for option in options:
        by_count.setdefault(len(find(scenes[0], option)), []).append(option)
    count = rng.choice(sorted(by_count))
    return Question("count", "count", (rng.choice(by_count[count]),))


def _attribute(name: str) -> Callable[[random.Random, Sequence[Scene]], Question | None]:
    def draw(rng: random.Random, scenes: Sequence[Scene]) -> Question | None:
        subject = _unique(rng, scenes[0], rng.choice(scenes[0]), without=(name,))
        return None if subject is None else Question(name, "attribute", (subject,), name)

    return draw


def _location(rng: random.Random, scenes: Sequence[Scene]) -> Question | None:
    subject = _unique(rng, scenes[0], rng.choice(scenes[0]))
    return None if subject is None else Question("location", "where", (subject,))


def _two(rng: random.Random, scene: Scene, without: Sequence[str] = ()) -> tuple[Description, Description] | None:
    if len(scene) < 2:
        return None
    subjects = [_unique(rng, scene, item, without) for item in rng.sample(scene, 2)]
    return None if subjects[0] is None or subjects[1] is None else (subjects[0], subjects[1])


def _comparison(rng: random.Random, scenes: Sequence[Scene]) -> Question | None:
    name = rng.choice(("color", "shape"))

    def propose() -> Question:
        first, second = rng.sample(ATTRIBUTES[name], 2)
        return Question("comparison", "more", (Description(**{name: first}), Description(**{name: second})))

    return _wanted(rng, scenes, _YES_NO, propose)


def _attribute_comparison(rng: random.Random, scenes: Sequence[Scene]) -> Question | None:
    form = rng.choice(("larger", "same"))
    word = rng.choice(("color", "shape", "material", "size")) if form == "same" else ""
    without = ("size",) if form == "larger" else (word,)

    def propose() -> Question | None:
        subjects = _two(rng, scenes[0], without)
        return None if subjects is None else Question("attribute-comparison", form, subjects, word)

    return _wanted(rng, scenes, _YES_NO, propose)


def _relation(rng: random.Random, scenes: Sequence[Scene]) -> Question | None:
    word = rng.choice(RELATIONS)

    def propose() -> Question | None:
        subjects = _two(rng, scenes[0])
        return None if subjects is None else Question("relation", "relation", subjects, word)

    return _wanted(rng, scenes, _YES_NO, propose)


def _difference(rng: random.Random, scenes: Sequence[Scene]) -> Question | None:
    form = rng.choice(("changed", "which-more", "which-has"))
    if form != "which-has":
        return Question("difference", form)
    phrase = rng.choice(_PHRASES)
    near = scenes[0] + scenes[1]

    def propose() -> Question:
        return Question("difference", form, (_random_description(rng, phrase, near),))

    return _wanted(rng, scenes, ("first", "second", "both", "neither"), propose)


_DRAWERS: Mapping[str, Callable[[random.Random, Sequence[Scene]], Question | None]] = {
    "existence": _existence,
    "count": _count,
    "color": _attribute("color"),
    "shape": _attribute("shape"),
    "size": _attribute("size"),
    "material": _attribute("material"),
    "comparison": _comparison,
    "attribute-comparison": _attribute_comparison,
    "relation": _relation,
    "location": _location,
    "difference": _difference,
}
