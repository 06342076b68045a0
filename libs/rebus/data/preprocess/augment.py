"""What training alone does to images; serving never does, so it is no part of a digest."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class JpegNoiseConfig:
    """Bounds of the JPEG quality; InternVL 2.5 draws from 75 to 100 (arXiv 2412.05271, section 3.2)."""

    min_quality: int = 75
    max_quality: int = 100
    # Share of the images that are compressed.
    probability: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_quality <= self.max_quality <= 100:
            raise ValueError(f"need 1 <= min_quality={self.min_quality} <= max_quality={self.max_quality} <= 100")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability} is outside 0..1")


class JpegNoise:
    """Compresses still images with a random quality, as pictures from the web are; videos are left alone."""

    def __init__(self, config: JpegNoiseConfig, *, seed: int) -> None:
        self._config, self._seed = config, seed

    def __call__(self, pixels: NDArray[np.uint8], *key: int) -> NDArray[np.uint8]:
        """uint8 ``[H, W, 3]`` with the traces of JPEG; ``key`` (a sample's number, an image's) decides the draw."""
        quality = self.quality(*key)
        if quality is None:
            return pixels
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=quality)
        return np.array(Image.open(out, formats=["JPEG"]), np.uint8)

    def quality(self, *key: int) -> int | None:
        """The quality drawn for ``key``; None where the image stays as it is."""
        rng = np.random.default_rng([self._seed, *key])
        quality = int(rng.integers(self._config.min_quality, self._config.max_quality + 1))
        return quality if rng.random() < self._config.probability else None
