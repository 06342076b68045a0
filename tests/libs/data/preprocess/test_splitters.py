"""Grids against brute force over every size, and against transformers."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from rebus.data.preprocess.splitters import (
    AspectConfig,
    AspectSplitter,
    DynamicConfig,
    DynamicSplitter,
    Grid,
    SubImagesConfig,
    SubImageSplitter,
)

SIDE = 8
LATTICE = list(product(range(1, 41), repeat=2))


def padding_or_loss(height: int, width: int, rows: int, columns: int) -> tuple[bool, Fraction]:
    """Whether the picture shrinks, and then what share of it is lost, else how many pixels are padding.

    The picture is laid along each border in turn; the one that fits inside the grid counts.
    """
    canvas_height, canvas_width = rows * SIDE, columns * SIDE
    for h, w in [
        (Fraction(canvas_height), Fraction(width * canvas_height, height)),
        (Fraction(height * canvas_width, width), Fraction(canvas_width)),
    ]:
        if h <= canvas_height and w <= canvas_width:
            lost = 1 - h * w / (height * width)
            return (True, lost) if lost > 0 else (False, canvas_height * canvas_width - h * w)
    raise AssertionError("neither border")


@pytest.mark.paper("mm1-5")
@pytest.mark.parametrize(("least", "most"), [(4, 9), pytest.param(1, 9, marks=pytest.mark.slow)])
def test_mm1_5_takes_the_best_of_all_grids(least: int, most: int) -> None:
    grids = [g for g in product(range(1, most + 1), repeat=2) if least <= g[0] * g[1] <= most]
    chooser = DynamicSplitter(DynamicConfig(min_tiles=least, max_tiles=most))
    shrunk = 0
    for height, width in LATTICE:
        costs = {grid: padding_or_loss(height, width, *grid) for grid in grids}
        best = min(costs.values())
        found = chooser(height, width, side=SIDE)
        shrunk += best[0]

        ties = sorted((r * c, r, c) for (r, c), cost in costs.items() if cost == best)
        assert (found.rows, found.columns) == ties[0][1:]
        assert found.overview == ("none" if found.rows * found.columns == 1 else "last")
    assert 100 < shrunk < len(LATTICE) - 100  # both cases of the rule were met


@pytest.mark.paper("mm1-5")
def test_mm1_5_does_not_split_among_three_images() -> None:
    chooser = DynamicSplitter(DynamicConfig())
    assert [chooser(40, 40, side=SIDE, num_images=n).num_tiles for n in (1, 2, 3, 4)] == [10, 10, 1, 1]


@pytest.mark.paper("internvl25")
@pytest.mark.parametrize(("least", "most"), [(1, 12), (2, 6), (1, 1)])
def test_internvl_equals_transformers(least: int, most: int) -> None:
    chooser = AspectSplitter(AspectConfig(min_tiles=least, max_tiles=most))
    sizes = [*LATTICE, (480, 640), (1080, 1920), (33, 1000), (1000, 33)]
    for height, width in sizes:
        found = chooser(height, width, side=SIDE)
        expected = get_optimal_tiled_canvas((height, width), (SIDE, SIDE), least, most)
        assert (found.columns, found.rows) == expected
        assert found.overview == ("none" if expected == (1, 1) else "last")


@pytest.mark.paper("internvl25")
def test_internvl_grid_has_the_nearest_aspect_ratio() -> None:
    chooser = AspectSplitter(AspectConfig(max_tiles=12))
    grids = [g for g in product(range(1, 13), repeat=2) if g[0] * g[1] <= 12]
    for height, width in LATTICE:
        found = chooser(height, width, side=SIDE)
        errors = [abs(width / height - columns / rows) for rows, columns in grids]
        assert abs(width / height - found.columns / found.rows) == min(errors)


def test_mm1_is_an_overview_and_four_crops() -> None:
    found = SubImageSplitter(SubImagesConfig())(30, 40, side=SIDE)

    assert found == Grid(2, 2, "first")
    assert found.num_tiles * 144 == 720  # tokens of an image of 1344 pixels in the paper


@pytest.mark.parametrize("bounds", [(0, 4), (5, 4), (1, 65)])
def test_wrong_bounds_are_refused(bounds: tuple[int, int]) -> None:
    for config in (DynamicConfig, AspectConfig):
        with pytest.raises(ValueError, match="need 1 <= min_tiles"):
            config(min_tiles=bounds[0], max_tiles=bounds[1])
