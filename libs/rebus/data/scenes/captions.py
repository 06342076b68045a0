"""Captions of a scene: where things are, what they are, how they stand to each other."""

from __future__ import annotations

from rebus.data.scenes.graph import RELATIONS, Description, Scene, SceneObject, describe, related
from rebus.data.scenes.questions import with_article

_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "center", "right")


def place(item: SceneObject) -> str:
    """The cell of a 3 x 3 grid that holds the centre, in words: ``top left``."""
    row, column = min(int(item.y * 3), 2), min(int(item.x * 3), 2)
    return f"{_ROWS[row]} {_COLUMNS[column]}"


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
    """Every relation that holds between neighbours of the reading order: ``the red cube is left of the gray cone.``"""
    order = reading_order(scene)
    return [
        f"the {_full(first).text} is {relation} the {_full(second).text}."
        for first, second in zip(order, order[1:], strict=False)
        for relation in RELATIONS
        if related(first, relation, second)
    ]


def _full(item: SceneObject) -> Description:
    return describe(item, ("size", "color", "material", "shape"))
