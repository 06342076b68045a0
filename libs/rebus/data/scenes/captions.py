"""Captions of a scene: where things are and what they are."""

from __future__ import annotations

from rebus.data.scenes.graph import ATTRIBUTES, Scene, SceneObject, describe, place
from rebus.data.scenes.questions import with_article


def reading_order(scene: Scene) -> list[SceneObject]:
    """Row by row of the 3 x 3 grid, left to right within a row."""
    return sorted(scene, key=lambda item: (min(int(item.y * 3), 2), item.x, item.y))


def phrases(scene: Scene) -> list[tuple[str, SceneObject]]:
    """One phrase an object in reading order, location first: ``top left, a small red metal cube.``

    Location first, because the place decides which object comes next; then only looking remains.
    """
    return [
        (f"{place(item)}, {with_article(describe(item, tuple(ATTRIBUTES)).text)}.", item)
        for item in reading_order(scene)
    ]
