"""What is drawn is what the graph says, read back from the pixels."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rebus.data.scenes.graph import COLORS, GAP, HALF_SIDE, MATERIALS, SHAPES, SIZES, Scene, SceneObject, random_scene
from rebus.data.scenes.render import PALETTE, render

SIDE = 64
BACKGROUND = 225


def pixels(scene: Scene, side: int = SIDE) -> np.ndarray:
    return np.asarray(render(scene, side, BACKGROUND)).astype(int)


def cut(image: np.ndarray, item: SceneObject) -> np.ndarray:
    x1, y1, x2, y2 = (round(value * len(image)) for value in item.box)
    return image[y1:y2, x1:x2]


def thing(**changes: str) -> SceneObject:
    values = {"size": "large", "color": "red", "material": "rubber", "shape": "cube", **changes}
    return SceneObject(**values, x=0.5, y=0.5)


def nearest_color(image: np.ndarray) -> str:
    """The palette colour most pixels are nearest to; the background does not count."""
    names = list(PALETTE)
    palette = np.array([PALETTE[name] for name in names])
    body = image[np.abs(image - BACKGROUND).max(-1) > 40]
    nearest = np.abs(body[:, None] - palette).sum(-1).argmin(1)
    return names[np.bincount(nearest, minlength=len(names)).argmax()]


def test_colors_of_random_scenes_are_read_back() -> None:
    rng = random.Random(0)
    for _ in range(40):
        scene = random_scene(rng, 1, 4)
        image = pixels(scene)
        assert [nearest_color(cut(image, item)) for item in scene] == [item.color for item in scene]


def test_boxes_hold_everything_that_is_drawn() -> None:
    rng = random.Random(1)
    for _ in range(40):
        scene = random_scene(rng, 1, 4)
        image = pixels(scene)
        for item in scene:
            x1, y1, x2, y2 = item.box
            low = (int(np.floor(y1 * SIDE)), int(np.floor(x1 * SIDE)))
            high = (int(np.ceil(y2 * SIDE)), int(np.ceil(x2 * SIDE)))
            box = image[low[0] : high[0], low[1] : high[1]]
            assert (np.abs(box - BACKGROUND).max(-1) > 20).mean() > 0.25
            image[low[0] : high[0], low[1] : high[1]] = BACKGROUND
        assert (image == BACKGROUND).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_metal_shows_a_white_spot_and_rubber_none(shape: str, size: str) -> None:
    for color in COLORS:
        shown = {
            material: (pixels((thing(shape=shape, size=size, color=color, material=material),)).min(-1) > 240).sum()
            for material in MATERIALS
        }
        assert shown["metal"] >= 1
        assert shown["rubber"] == 0


def test_shapes_and_sizes_differ_in_outline() -> None:
    outlines = {
        (shape, size): (np.abs(pixels((thing(shape=shape, size=size),)) - BACKGROUND).max(-1) > 40)
        for shape in SHAPES
        for size in SIZES
    }
    keys = list(outlines)
    for at, first in enumerate(keys):
        for second in keys[at + 1 :]:
            assert (outlines[first] != outlines[second]).sum() > 15, (first, second)


def test_objects_keep_apart_and_inside() -> None:
    rng = random.Random(2)
    for _ in range(200):
        scene = random_scene(rng, 1, 5)
        for at, item in enumerate(scene):
            assert min(item.box) >= GAP - 1e-9
            assert max(item.box) <= 1 - GAP + 1e-9
            for other in scene[at + 1 :]:
                reach = HALF_SIDE[item.size] + HALF_SIDE[other.size] + GAP
                assert max(abs(item.x - other.x), abs(item.y - other.y)) >= reach - 1e-9


def test_edges_are_anti_aliased_and_size_is_free() -> None:
    scene = (thing(shape="sphere"),)
    assert render(scene, 96).size == (96, 96)
    levels = {tuple(p) for p in pixels(scene).reshape(-1, 3)}
    assert len(levels) > 2
