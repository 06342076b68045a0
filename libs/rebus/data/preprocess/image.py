"""From encoded images to what an image encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from rebus import config as configs
from rebus.data.images import DEFAULT_LIMITS, WHITE, Color, ImageBytes, ImageLimits, OpenedImage
from rebus.data.preprocess.resize import Area, CanvasMode, Resample, SideMode, fit, side_size, within_size
from rebus.errors import FailedPreconditionError, invalid

# Part of every digest: raise it whenever the same config would give different pixels.
CODE_VERSION = "image-processor-3"

_CANVAS_MODES: tuple[CanvasMode, ...] = get_args(CanvasMode)


@dataclass(frozen=True, kw_only=True)
class ImageProcessorConfig:
    """How an image becomes an encoder's input.

    Square, ``image_size`` a side: ``squash`` ignores the aspect ratio, ``pad`` keeps it, centred on ``background``,
    ``pad-end`` keeps it at the upper left, so that positions keep their meaning, ``crop`` keeps it and takes the
    centre. Of the image's own shape, for encoders that read any: ``shortest`` and ``longest`` bring that side to
    ``image_size``, ``within`` bounds the longer side by ``image_size`` and the shorter by ``min_size``. ``mean`` and
    ``std`` are per channel (R, G, B), of pixels scaled to 0–1.
    """

    image_size: int = 64
    resize: CanvasMode | SideMode = "squash"
    resample: Resample = "bilinear"
    background: Color = WHITE
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    # Shortest side, in pixels, that ``within`` makes; else 0.
    min_size: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 4096:
            raise ValueError(f"image_size={self.image_size} is outside 1..4096")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive")
        if not all(0 <= c <= 255 for c in self.background):
            raise ValueError(f"background={self.background} must hold bytes")
        if (self.resize == "within") != (self.min_size > 0) or self.min_size > self.image_size:
            raise ValueError(
                f"min_size={self.min_size} must be within 1..image_size={self.image_size} where resize is 'within', "
                f"else 0; it is {self.resize!r}"
            )

    @property
    def is_square(self) -> bool:
        """Whether every image gets the same, square size."""
        return self.resize in _CANVAS_MODES


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
        return configs.digest({"code": CODE_VERSION, "config": digested(self.config)})

    def open(self, data: ImageBytes, *, field: str = "image") -> OpenedImage:
        """The header of an encoded image; errors as ``decode_image``."""
        return OpenedImage(data, limits=self.limits, field=field)

    def decode(self, image: OpenedImage, height: int, width: int) -> np.ndarray:
        """uint8 ``[h, w, 3]``, of a JPEG no more than a resize onto a canvas ``[height, width, 3]`` needs.

        Both sides come at those of the canvas or more, where the image has them.
        """
        return image.decode(background=self.config.background, min_size=(height, width))

    def __call__(self, data: ImageBytes, *, field: str = "image") -> np.ndarray:
        """Encoded bytes to uint8 ``[H, W, 3]`` of the config's size; errors as ``decode_image``."""
        size = self.config.image_size
        return self.resize(self.decode(self.open(data, field=field), size, size))

    def batch(self, images: Sequence[bytes]) -> np.ndarray:
        """N encoded images to uint8 ``[N, S, S, 3]``; an error names ``images[i]``.

        ``ValueError`` unless the config makes squares.
        """
        if not self.config.is_square:
            raise ValueError(f"resize={self.config.resize} gives images of many shapes, which make no batch")
        size = self.config.image_size
        out = np.empty((len(images), size, size, 3), np.uint8)
        for i, data in enumerate(images):
            out[i] = self(data, field=f"images[{i}]")
        return out

    def resize(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 ``[h, w, 3]`` to uint8 ``[H, W, 3]``; an image of the right size is returned as it is."""
        size = self.config.image_size
        height, width = pixels.shape[:2]
        if self.config.resize == "within":
            return self.onto(pixels, *within_size(height, width, smallest=self.config.min_size, largest=size))[0]
        if self.config.resize in ("shortest", "longest"):
            return self.onto(pixels, *side_size(self.config.resize, height, width, size))[0]
        return self.onto(pixels, size, size)[0]

    def onto(self, pixels: np.ndarray, height: int, width: int) -> tuple[np.ndarray, Area]:
        """uint8 ``[h, w, 3]`` onto a canvas ``[height, width, 3]``, and the area that the picture fills.

        Where ``is_square`` is False, canvases have the picture's own shape and it fills them.
        """
        config = self.config
        mode = "squash" if config.resize in ("shortest", "longest", "within") else config.resize
        return fit(pixels, height, width, mode=mode, resample=config.resample, background=config.background)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 ``[N, H, W, 3]`` to float32 ``[N, 3, H, W]``: ``(x / 255 - mean) / std``."""
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"expected uint8 [N, H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
        scaled = pixels.astype(np.float32) * self._scale + self._shift
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def digested(config: ImageProcessorConfig) -> dict[str, Any]:
    """The settings that a digest is over: those younger than trained models count only where they are used."""
    plain = configs.to_plain(config)
    if not config.min_size:
        del plain["min_size"]
    return plain


def model_processor(config: ImageProcessorConfig, *, image_size: int, digest: str = "") -> ImageProcessor:
    """The processor of a model whose encoder reads squares of ``image_size`` pixels.

    ``digest`` is the one stored with a trained model, empty for a new one. Raises ``FailedPreconditionError`` if this
    code would process images otherwise than in training, ``InvalidArgumentError`` if the encoder cannot read them.
    """
    processor = ImageProcessor(config)
    check_digest(processor.digest, digest)
    check_size(config, image_size)
    return processor


def check_size(config: ImageProcessorConfig, image_size: int, *, any_shape: bool = False) -> None:
    """``InvalidArgumentError`` unless every image comes as an encoder's square of ``image_size`` pixels.

    With ``any_shape`` images may come in their own shapes.
    """
    if config.image_size != image_size:
        raise invalid("model.preprocess.image_size", f"is {config.image_size}, the encoder reads {image_size}")
    if not config.is_square and not any_shape:
        expected = ", ".join(_CANVAS_MODES)
        raise invalid("model.preprocess.resize", f"is {config.resize!r}, the encoder reads squares: {expected}")


def check_digest(found: str, stored: str) -> None:
    """``FailedPreconditionError`` if a model's ``stored`` digest (empty: a new model) is not what this code does."""
    if stored not in ("", found):
        raise FailedPreconditionError(
            f"the model was trained with preprocessing {stored[:12]}, this code does {found[:12]}; "
            "serve it with the code revision that trained it"
        )
