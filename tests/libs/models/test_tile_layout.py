"""The layout of tiles' tokens, written out for small maps."""

from __future__ import annotations

import pytest
import torch

from rebus.data.preprocess.splitters import AnyResolutionConfig, AnyResolutionSplitter
from rebus.models.tile_layout import count_tokens, join_tiles, unpadded


@pytest.mark.parametrize(
    ("cells", "size", "expected"),
    [
        ((4, 4), (10, 10), (4, 4)),
        ((4, 4), (10, 20), (2, 4)),
        ((4, 4), (20, 10), (4, 2)),
        ((4, 4), (15, 20), (4, 4)),  # of one empty row none is cut
        ((2, 6), (1, 60), (0, 6)),  # as in the published code, only the overview is left
        ((6, 2), (100, 100), (2, 2)),
    ],
)
def test_what_an_image_does_not_fill_is_cut_at_both_ends(
    cells: tuple[int, int], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    rows, columns = unpadded(cells, size)
    assert (rows.stop - rows.start, columns.stop - columns.start) == expected
    assert (rows.start, columns.start) == (cells[0] - rows.stop, cells[1] - columns.stop)


def test_rows_run_through_tiles_and_end_with_a_newline() -> None:
    """Two tiles side by side of 2 x 2 tokens, all of which the image fills."""
    overview, left, right = ([[1, 2], [3, 4]], [[10, 11], [14, 15]], [[12, 13], [16, 17]])
    tiles = torch.tensor([overview, left, right], dtype=torch.float).flatten(1)[..., None]
    joined = join_tiles(tiles, torch.tensor([-1.0]), grid=(1, 2), tile_grid=(2, 2), size=(10, 20))
    assert joined[:, 0].tolist() == [1, 2, 3, 4, 10, 11, 12, 13, -1, 14, 15, 16, 17, -1]
    assert len(joined) == count_tokens(grid=(1, 2), tile_grid=(2, 2), size=(10, 20))


def test_as_many_tiles_as_the_grid_has_are_needed() -> None:
    with pytest.raises(ValueError, match=r"expected 3 tiles of 4 tokens, found \[2, 4\]"):
        join_tiles(torch.zeros(2, 4, 1), torch.zeros(1), grid=(1, 2), tile_grid=(2, 2), size=(10, 20))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((10, 10), (1, 2)),
        ((39, 39), (2, 2)),
        ((10, 30), (1, 2)),
        ((90, 10), (3, 1)),
        ((200, 200), (2, 2)),
        ((5, 60), (1, 3)),
    ],
)
def test_the_grid_keeps_most_and_wastes_least(size: tuple[int, int], expected: tuple[int, int]) -> None:
    grid = AnyResolutionSplitter(AnyResolutionConfig())(*size, side=20)
    assert ((grid.rows, grid.columns), grid.overview) == (expected, "first")
