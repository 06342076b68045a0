"""From encoded images to what an image encoder reads.

Training, indexing and serving build the same ``ImageProcessor`` from the config stored with the model, so that
they cannot drift apart; ``digest`` names the processing and keys feature caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from rebus import config as configs
from rebus.data.images import DEFAULT_LIMITS, WHITE, Color, ImageBytes, ImageLimits, decode_image

ResizeMode = Literal["squash", "pad", "crop"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]

# Part of every digest: raise it whenever the same config would give different pixels.
CODE_VERSION = "image-processor-1"

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True, kw_only=True)
class ImageProcessorConfig:
    """How an image becomes a square input.

    ``squash`` ignores the aspect ratio, ``pad`` keeps it and fills with ``background``, ``crop`` keeps it and
    takes the centre. ``mean`` and ``std`` are per channel (R, G, B), of pixels scaled to 0–1.
    """

    image_size: int = 64
    resize: ResizeMode = "squash"
    resample: Resample = "bilinear"
    background: Color = WHITE
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 4096:
            raise ValueError(f"image_size={self.image_size} is outside 1..4096")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive")
        if not all(0 <= c <= 255 for c in self.background):
            raise ValueError(f"background={self.background} must hold bytes")


class ImageProcessor:
    """Decodes, resizes and normalises images as one config says."""

    def __init__(self, config: ImageProcessorConfig, *, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self.config = config
        self.limits = limits
        mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
        self._scale = (1.0 / (255.0 * std)).astype(np.float32)
        self._shift = (-mean / std).astype(np.float32)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the config and the code's version: equal digests give equal pixels."""
        return configs.digest({"code": CODE_VERSION, "config": self.config})

    def __call__(self, data: ImageBytes, *, field: str = "image") -> np.ndarray:
        """Encoded bytes to uint8 ``[S, S, 3]``; ``InvalidArgumentError`` names ``field`` (see ``decode_image``)."""
        return self.resize(decode_image(data, limits=self.limits, background=self.config.background, field=field))

    def batch(self, images: Sequence[bytes]) -> np.ndarray:
        """N encoded images to uint8 ``[N, S, S, 3]``; an error names ``images[i]``."""
        size = self.config.image_size
        out = np.empty((len(images), size, size, 3), np.uint8)
        for i, data in enumerate(images):
            out[i] = self(data, field=f"images[{i}]")
        return out

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 ``[H, W, 3]`` to uint8 ``[S, S, 3]``; an image of the right size is returned as it is."""
        size = self.config.image_size
        if pixels.shape == (size, size, 3):
            return pixels
        image = Image.fromarray(pixels)
        if self.config.resize == "squash":
            return np.array(self._scaled(image, size, size))
        if self.config.resize == "pad":
            return np.array(self._padded(image))
        return np.array(self._cropped(image))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 ``[N, H, W, 3]`` to float32 ``[N, 3, H, W]``: ``(x / 255 - mean) / std``."""
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"expected uint8 [N, H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
        scaled = pixels.astype(np.float32) * self._scale + self._shift
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def _scaled(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return image.resize((width, height), _FILTERS[self.config.resample])

    def _padded(self, image: Image.Image) -> Image.Image:
        size = self.config.image_size
        ratio = size / max(image.size)
        width, height = (max(1, round(side * ratio)) for side in image.size)
        canvas = Image.new("RGB", (size, size), self.config.background)
        canvas.paste(self._scaled(image, width, height), ((size - width) // 2, (size - height) // 2))
        return canvas

    def _cropped(self, image: Image.Image) -> Image.Image:
        """Cuts the centre square first, so that a very long image never becomes a large intermediate."""
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return self._scaled(square, self.config.image_size, self.config.image_size)
