"""How images become an InternVL's tiles: ``preprocessor_config.json`` of ``GotOcr2ImageProcessor``, and our config.

A model keeps how one tile is made as ``preprocess``, and the bounds of the grid as the splitter of its ``media``; one
without ``media`` is a model of single tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rebus import config as configs
from rebus import registry
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.media import MediaProcessorConfig, MediaSettings
from rebus.data.preprocess.splitters import AspectConfig
from rebus.errors import InvalidArgumentError, invalid
from rebus.models.hf.image_processors import IMAGE_FILE, read_image_processor, read_preprocess, write_squash

VIDEO_FILE = "video_preprocessor_config.json"
_KIND = "GotOcr2ImageProcessor"


@dataclass(frozen=True, kw_only=True)
class TilesFile:
    """What the file says of tiles, with the class's defaults.

    ``crop_to_patches`` is not read: ``InternVLProcessor`` makes tiles whatever it says.
    """

    min_patches: int = 1
    max_patches: int = 12


def read_tiles(folder: Path, *, image_size: int) -> MediaProcessorConfig:
    """How the folder's files say an image becomes tiles, for an encoder that reads squares of ``image_size``.

    Raises what ``read_preprocess`` raises, and ``InvalidArgumentError`` for bounds that no splitter has.
    """
    image = read_preprocess(folder, image_size=image_size, kinds=[_KIND])
    values, where = read_image_processor(folder)
    known = {item.name for item in fields(TilesFile)}
    said = {key: value for key, value in values.items() if key in known and value is not None}
    file = configs.build(TilesFile, said, where=where)
    try:
        bounds = AspectConfig(min_tiles=file.min_patches, max_tiles=file.max_patches)
    except ValueError as error:
        raise InvalidArgumentError(f"{where}.min_patches, {where}.max_patches: {error}") from None
    return MediaProcessorConfig(image=image, splitter={"name": "aspect", **configs.to_plain(bounds)})


def media_of(tiles: MediaProcessorConfig) -> MediaSettings | None:
    """What a model keeps of ``read_tiles`` beside how a tile is made: None where every image is a single one."""
    return None if _bounds(tiles).max_tiles == 1 else MediaSettings(splitter=tiles.splitter)


def most_tiles(tiles: MediaProcessorConfig) -> int:
    """Squares that an image becomes at most, its thumbnail included."""
    most = _bounds(tiles).max_tiles
    return most + (most > 1)


def write_tiles(config: ImageProcessorConfig, media: MediaSettings | None) -> dict[str, dict[str, Any]]:
    """Files by name of how images become tiles, and of how a frame of a video is processed.

    The splitter of ``media`` must be ``aspect``. Raises ``InvalidArgumentError`` where images do not fill their tiles,
    for which there is no word.
    """
    if config.resize != "squash":
        raise invalid("preprocess.resize", f"an InternVL has no word for {config.resize!r}, only 'squash'")
    image = {"processor_class": "InternVLProcessor", **write_squash(config, _KIND)}
    shared = ("processor_class", "size", "resample", "image_mean", "image_std")
    video = {"video_processor_type": "InternVLVideoProcessor", **{name: image[name] for name in shared}}
    bounds = AspectConfig(max_tiles=1) if media is None else _bounds(media)
    file = TilesFile(min_patches=bounds.min_tiles, max_patches=bounds.max_tiles)
    return {IMAGE_FILE: {**image, **configs.to_plain(file)}, VIDEO_FILE: video}


def _bounds(media: MediaSettings) -> AspectConfig:
    return registry.settings("splitter", media.splitter)[1]
