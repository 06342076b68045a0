"""Scene graphs: objects with attributes and places, drawn at random from a seeded generator.

Places are fractions of the image's sides: ``x`` grows to the right, ``y`` grows downwards.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rebus.data.sample import Box

SHAPES = ("sphere", "cube", "cylinder", "cone")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "gray")
MATERIALS = ("metal", "rubber")
SIZES = ("small", "large")
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {"size": SIZES, "color": COLORS, "material": MATERIALS, "shape": SHAPES}
RELATIONS = ("left of", "right of", "above", "below")

# Cells of a 3 x 3 grid, in words.
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")

# Half the side of an object's box, as a fraction of the image's side.
HALF_SIDE: Mapping[str, float] = {"small": 0.095, "large": 0.155}
# Boxes keep this distance from each other and from the border.
GAP = 0.015
# Centres closer than this along an axis are in no relation along it: the question would be a matter of a pixel.
RELATION_MARGIN = 0.12
_PLACEMENT_TRIES = 60


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object: four attributes and the centre of its box."""

    size: str
    color: str
    material: str
    shape: str
    x: float
    y: float

    @property
    def box(self) -> Box:
        """``(x1, y1, x2, y2)`` as fractions of the sides."""
        half = HALF_SIDE[self.size]
        return (self.x - half, self.y - half, self.x + half, self.y + half)


Scene = tuple[SceneObject, ...]


@dataclass(frozen=True)
class Description:
    """A noun phrase: the attributes it names; ``None`` leaves one open."""

    size: str | None = None
    color: str | None = None
    material: str | None = None
    shape: str | None = None

    def matches(self, item: SceneObject) -> bool:
        """Whether ``item`` has every attribute named."""
        return all(getattr(self, name) is None or getattr(self, name) == getattr(item, name) for name in ATTRIBUTES)

    @property
    def text(self) -> str:
        """``small red metal cube``; an open shape reads ``object``."""
        words = [self.size, self.color, self.material, self.shape or "object"]
        return " ".join(word for word in words if word)

    @property
    def plural(self) -> str:
        """``small red metal cubes``."""
        return self.text + "s"


def describe(item: SceneObject, attributes: Sequence[str]) -> Description:
    """The description of ``item`` by these attributes."""
    return Description(**{name: getattr(item, name) for name in attributes})


def related(first: SceneObject, relation: str, second: SceneObject) -> bool | None:
    """Whether ``first`` is in ``relation`` to ``second``; ``None`` where the two are too close along the axis."""
    along_x = relation in ("left of", "right of")
    distance = second.x - first.x if along_x else second.y - first.y
    if abs(distance) < RELATION_MARGIN:
        return None
    return (distance > 0) == (relation in ("left of", "above"))


def place(item: SceneObject) -> str:
    """The cell of a 3 x 3 grid that holds the centre, in words: ``top left``."""
    return f"{ROWS[min(int(item.y * 3), 2)]} {COLUMNS[min(int(item.x * 3), 2)]}"


def random_object(rng: random.Random, others: Sequence[SceneObject]) -> SceneObject | None:
    """An object that overlaps none of ``others``, or ``None`` when no free place was found."""
    values = {name: rng.choice(options) for name, options in ATTRIBUTES.items()}
    place = free_place(rng, values["size"], others)
    return None if place is None else SceneObject(**values, x=place[0], y=place[1])


def free_place(rng: random.Random, size: str, others: Sequence[SceneObject]) -> tuple[float, float] | None:
    """A centre for an object of ``size`` whose box keeps ``GAP`` from the others, or ``None``."""
    half = HALF_SIDE[size]
    low, high = half + GAP, 1 - half - GAP
    for _ in range(_PLACEMENT_TRIES):
        x, y = round(rng.uniform(low, high), 4), round(rng.uniform(low, high), 4)
        reach = [half + HALF_SIDE[other.size] + GAP for other in others]
        if all(max(abs(x - o.x), abs(y - o.y)) >= r for o, r in zip(others, reach, strict=True)):
            return x, y
    return None


def random_scene(rng: random.Random, min_objects: int, max_objects: int) -> Scene:
    """A scene of ``min_objects`` to ``max_objects`` objects (uniform), in random order.

    A third of the objects repeat one attribute of an earlier one, so that counts above one and "the same" occur.
    """
    wanted = rng.randint(min_objects, max_objects)
    objects: list[SceneObject] = []
    while len(objects) < wanted:
        item = random_object(rng, objects)
        if item is None:  # crowded: start over rather than bias the count
            objects = []
            continue
        if objects and rng.random() < 1 / 3:
            shared = rng.choice(("color", "material", "shape"))
            item = dataclasses.replace(item, **{shared: getattr(rng.choice(objects), shared)})
        objects.append(item)
    return tuple(objects)


def scene_to_metadata(scene: Scene) -> list[dict[str, Any]]:
    """The scene as JSON-serialisable values."""
    return [dataclasses.asdict(item) for item in scene]


def scene_from_metadata(values: Sequence[Mapping[str, Any]]) -> Scene:
    """The inverse of ``scene_to_metadata``."""
    return tuple(SceneObject(**item) for item in values)
