"""How images become a LLaVA-NeXT's tiles: its ``preprocessor_config.json``, and our config of one tile.

The overview is the whole image on a tile, whatever its shape; the tiles are cut from the image scaled into their grid,
centred on black.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rebus import config as configs
from rebus.data.preprocess import ImageProcessorConfig
from rebus.errors import invalid
from rebus.models.hf.image_processors import read_image_processor, read_preprocess, write_squash

KIND = "LlavaNextImageProcessor"


@dataclass(frozen=True, kw_only=True)
class TilesFile:
    """What the file says of tiles, with the class's default."""

    image_grid_pinpoints: list[tuple[int, int]] | None = None


def read_any_resolution(folder: Path, *, image_size: int, pinpoints: Sequence[tuple[int, int]]) -> ImageProcessorConfig:
    """How the folder's files say a tile is processed, for an encoder that reads squares of ``image_size``.

    Raises what ``read_preprocess`` raises, and ``InvalidArgumentError`` for grids other than the model's ``pinpoints``.
    """
    image = read_preprocess(folder, image_size=image_size, kinds=[KIND])
    values, where = read_image_processor(folder)
    name = "image_grid_pinpoints"
    file = configs.build(TilesFile, {name: values[name]} if name in values else {}, where=where)
    if file.image_grid_pinpoints is not None and file.image_grid_pinpoints != list(pinpoints):
        raise invalid(f"{where}.{name}", f"{file.image_grid_pinpoints} are not the model's {list(pinpoints)}")
    # Shortest edge and crop meet only squares, the overview and the tiles.
    return replace(image, resize="squash")


def write_any_resolution(config: ImageProcessorConfig, pinpoints: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """``preprocessor_config.json`` of how a tile is processed; ``InvalidArgumentError`` names what has no word."""
    if config.resize != "squash":
        raise invalid("preprocess.resize", f"a LLaVA-NeXT has no word for {config.resize!r}, only 'squash'")
    square = {"height": config.image_size, "width": config.image_size}
    values = {**write_squash(config, KIND), "do_center_crop": True, "crop_size": square, "do_pad": True}
    return values | {"image_grid_pinpoints": [list(pinpoint) for pinpoint in pinpoints]}
