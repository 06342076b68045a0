"""How images become an Idefics2's input, at their own aspect ratios: its ``preprocessor_config.json``, and our config.

Where it says ``do_image_splitting``, the splitter of a model's ``media`` is ``quarters``. JPEGs far larger than
``longest_edge`` that are not split are decoded at a fraction here, so that sizes may round to a pixel more or less.
Transparent pixels show ``background``, which transformers has no word for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rebus import config as configs
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.media import MediaSettings
from rebus.errors import InvalidArgumentError, invalid
from rebus.models.hf.image_processors import (
    image_processor_kind,
    read_image_processor,
    read_pixels,
    write_pixels,
)

_KIND = "Idefics2ImageProcessor"


@dataclass(frozen=True, kw_only=True)
class NativeImageFile:
    """What the file says, with the defaults of ``Idefics2ImageProcessor``."""

    image_processor_type: str = _KIND
    do_resize: bool = True
    size: dict[str, int] = field(default_factory=lambda: {"shortest_edge": 378, "longest_edge": 980})
    resample: int = 2
    do_image_splitting: bool = False
    # Pads the images of a batch for each other, which changes no number.
    do_pad: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)


def read_native(folder: Path) -> tuple[ImageProcessorConfig, MediaSettings | None]:
    """Our configs of what the folder's files say: ``within`` two bounds, or squares; None where images stay whole.

    Raises ``NotFoundError`` where neither file is there, and ``InvalidArgumentError`` naming what has no counterpart.
    """
    values, where = read_image_processor(folder)
    image_processor_kind(values, where, [_KIND])
    known = {item.name for item in fields(NativeImageFile)} - {"image_processor_type"}
    said = {key: value for key, value in values.items() if key in known and value is not None}
    file = configs.build(NativeImageFile, said, where=where)
    pixels = read_pixels(file, where)
    try:
        image = ImageProcessorConfig(**_bounds(file.size, f"{where}.size"), **pixels)
    except ValueError as error:
        raise InvalidArgumentError(f"{where}: {error}") from None
    return image, MediaSettings(splitter={"name": "quarters"}) if file.do_image_splitting else None


def write_native(config: ImageProcessorConfig, media: MediaSettings | None) -> dict[str, Any]:
    """``preprocessor_config.json`` of our configs; ``InvalidArgumentError`` names what it has no word for.

    The splitter of ``media`` must be ``quarters``.
    """
    if config.resize == "within":
        size = {"shortest_edge": config.min_size, "longest_edge": config.image_size}
    elif config.resize == "squash":
        size = {"height": config.image_size, "width": config.image_size}
    else:
        raise invalid("preprocess.resize", f"transformers' Idefics2 has no word for {config.resize!r}")
    return configs.to_plain(NativeImageFile(size=size, do_image_splitting=media is not None, **write_pixels(config)))


def _bounds(size: dict[str, int], where: str) -> dict[str, Any]:
    shortest, longest = (size.get(f"{which}_edge") for which in ("shortest", "longest"))
    if shortest and longest:
        return {"resize": "within", "image_size": longest, "min_size": shortest}
    height, width = size.get("height"), size.get("width")
    if not height or height != width:
        raise invalid(where, f"expected a shortest_edge and a longest_edge, or a square, found {size}")
    return {"resize": "squash", "image_size": height}
