"""Resizing against Pillow, whose filters torch's are."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rebus.data.preprocess.resize import FILTERS, Resample, resized


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """A picture without noise, as photographs are."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(300, 400), (447, 447), (257, 900)])
def test_shrinking_equals_pillow_to_two_levels(resample: Resample, height: int, width: int) -> None:
    pixels = smooth(height, width)

    found = resized(pixels, 224, 224, resample).astype(int)

    difference = np.abs(found - np.array(Image.fromarray(pixels).resize((224, 224), FILTERS[resample])))
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("resample", ["nearest", "lanczos", "box"])
def test_other_filters_are_pillows(resample: Resample) -> None:
    pixels = smooth(90, 70)
    expected = np.array(Image.fromarray(pixels).resize((40, 50), FILTERS[resample]))
    np.testing.assert_array_equal(resized(pixels, 50, 40, resample), expected)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
def test_a_part_of_memory_that_is_only_read_will_do(resample: Resample) -> None:
    pixels = smooth(120, 160)
    pixels.flags.writeable = False
    cut = pixels[10:90, 20:100]
    np.testing.assert_array_equal(resized(cut, 33, 44, resample), resized(cut.copy(), 33, 44, resample))
