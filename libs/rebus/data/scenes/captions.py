"""Captions of a scene: where things are, what they are, how they stand to each other."""

from __future__ import annotations

from itertools import permutations

from rebus.data.scenes.graph import RELATIONS, Description, Scene, SceneObject, describe, place, related
from rebus.data.scenes.questions import with_article

def reading_order(scene: Scene) -> list[SceneObject]:
    """Row by row of the 3 x 3 grid, left to right within a row."""
    return sorted(scene, key=lambda item: (min(int(item.y * 3), 2), item.x, item.y))


def phrases(scene: Scene) -> list[tuple[str, SceneObject]]:
    """One phrase an object in reading order, location first: ``top left, a small red metal cube.``

    Location first, because the place decides which object comes next; then only looking remains.
    """
    return [
        (f"{place(item)}, {with_article(_full(item).text)}.", item)
        for item in reading_order(scene)
    ]


def statements(scene: Scene) -> list[str]:
    """Every relation that holds between two objects: ``the small red metal cube is left of the large gray ....``"""
    return [
        f"the {_full(first).text} is {relation} the {_full(second).text}."
        for first, second in permutations(reading_order(scene), 2)
        for relation in RELATIONS
        if related(first, relation, second)
    ]


def _full(item: SceneObject) -> Description:
    return describe(item, ("size", "color", "material", "shape"))
