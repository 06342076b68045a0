"""The answer to a question, computed from the scene graph and from nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rebus.data.sample import Box
from rebus.data.scenes.graph import ATTRIBUTES, Description, Scene, SceneObject, place, related
from rebus.data.scenes.questions import Question

NOTHING = "nothing"
ADDED, REMOVED, POSITION = "added", "removed", "position"
# What "what changed?" is answered with.
CHANGES = (ADDED, REMOVED, POSITION, "color", "size", NOTHING)


def answer(scenes: Sequence[Scene], question: Question) -> str | None:
    """The answer in words, or ``None`` where the question has none (it names no single object, or is too close)."""
    return _RULES[question.form](scenes, question)


def find(scene: Scene, description: Description) -> list[SceneObject]:
    """The objects that ``description`` matches, in scene order."""
    return [item for item in scene if description.matches(item)]


def referents(scene: Scene, question: Question) -> tuple[Box, ...]:
    """Boxes of the objects that the question names, in scene order; empty where nothing is as it describes."""
    return tuple(item.box for item in scene if any(subject.matches(item) for subject in question.subjects))


def _yes_no(value: bool | None) -> str | None:
    return None if value is None else ("yes" if value else "no")


def _single(scene: Scene, description: Description) -> SceneObject | None:
    found = find(scene, description)
    return found[0] if len(found) == 1 else None


def _pair(scene: Scene, question: Question) -> tuple[SceneObject, SceneObject] | None:
    """The two different objects that the question names, if each description fits exactly one."""
    first, second = (_single(scene, subject) for subject in question.subjects)
    return None if first is None or second is None or first is second else (first, second)


def _exists(scenes: Sequence[Scene], question: Question) -> str | None:
    return _yes_no(bool(find(scenes[0], question.subjects[0])))


def _count(scenes: Sequence[Scene], question: Question) -> str | None:
    return str(len(find(scenes[0], question.subjects[0])))


def _attribute(scenes: Sequence[Scene], question: Question) -> str | None:
    item = _single(scenes[0], question.subjects[0])
    return None if item is None else getattr(item, question.word)


def _larger(scenes: Sequence[Scene], question: Question) -> str | None:
    pair = _pair(scenes[0], question)
    return None if pair is None else _yes_no(pair[0].size == "large" and pair[1].size == "small")


def _more(scenes: Sequence[Scene], question: Question) -> str | None:
    first, second = (len(find(scenes[0], subject)) for subject in question.subjects)
    return _yes_no(first > second)


def _same(scenes: Sequence[Scene], question: Question) -> str | None:
    pair = _pair(scenes[0], question)
    return None if pair is None else _yes_no(getattr(pair[0], question.word) == getattr(pair[1], question.word))


def _relation(scenes: Sequence[Scene], question: Question) -> str | None:
    pair = _pair(scenes[0], question)
    return None if pair is None else _yes_no(related(pair[0], question.word, pair[1]))


def _where(scenes: Sequence[Scene], question: Question) -> str | None:
    item = _single(scenes[0], question.subjects[0])
    return None if item is None else place(item)


def _which_more(scenes: Sequence[Scene], question: Question) -> str | None:
    first, second = len(scenes[0]), len(scenes[1])
    return "both" if first == second else ("first" if first > second else "second")


def _which_has(scenes: Sequence[Scene], question: Question) -> str | None:
    first, second = (bool(find(scene, question.subjects[0])) for scene in scenes[:2])
    return {(True, True): "both", (True, False): "first", (False, True): "second"}.get((first, second), "neither")


def _changed(scenes: Sequence[Scene], question: Question) -> str | None:
    """Names the change; ``None`` where the scenes differ by more than one object."""
    before, after = scenes[0], scenes[1]
    gone, new = [o for o in before if o not in after], [o for o in after if o not in before]
    if not gone and not new:
        return NOTHING
    if len(gone) + len(new) == 1:
        return REMOVED if gone else ADDED
    if len(gone) != 1 or len(new) != 1:
        return None
    changes = [name for name in ATTRIBUTES if getattr(gone[0], name) != getattr(new[0], name)]
    if (gone[0].x, gone[0].y) != (new[0].x, new[0].y):
        changes.append(POSITION)
    return changes[0] if len(changes) == 1 else None


_RULES: Mapping[str, Callable[[Sequence[Scene], Question], str | None]] = {
    "exists": _exists,
    "count": _count,
    "attribute": _attribute,
    "larger": _larger,
    "more": _more,
    "same": _same,
    "relation": _relation,
    "where": _where,
    "changed": _changed,
    "which-more": _which_more,
    "which-has": _which_has,
}
