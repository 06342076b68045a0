"""How images become an encoder's input: ``preprocessor_config.json`` of CLIP, SigLIP or LLaVA, and our config.

Our pictures are cut before and padded after resizing, transformers' the other way round: sizes may round to a pixel
more or less, and borders differ. Transparent pixels show ``background``, which transformers has no word for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rebus import config as configs
from rebus.data.images import Color
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.resize import Resample
from rebus.errors import InvalidArgumentError, NotFoundError, invalid
from rebus.models.hf.files import read_json

IMAGE_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
# Pillow's numbers.
_RESAMPLES: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_Size = int | dict[str, int | None]


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """What the file says; the defaults are those of ``CLIPImageProcessor``."""

    image_processor_type: str = "CLIPImageProcessor"
    do_resize: bool = True
    size: _Size = 224
    resample: int = 3
    do_center_crop: bool | None = True
    crop_size: _Size | None = 224
    do_pad: bool | None = False
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = _CLIP_MEAN
    image_std: tuple[float, float, float] = _CLIP_STD


_DEFAULTS = {
    "CLIPImageProcessor": ImageFile(),
    "LlavaImageProcessor": ImageFile(image_processor_type="LlavaImageProcessor"),
    "SiglipImageProcessor": ImageFile(
        image_processor_type="SiglipImageProcessor",
        size={"height": 224, "width": 224},
        do_center_crop=False,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    ),
    # What it says of tiles is read by ``any_resolution_images``.
    "LlavaNextImageProcessor": ImageFile(image_processor_type="LlavaNextImageProcessor", do_pad=True),
    # Of InternVL too; what it says of tiles is read by ``tiles``.
    "GotOcr2ImageProcessor": ImageFile(
        image_processor_type="GotOcr2ImageProcessor", size={"height": 384, "width": 384}, do_center_crop=False
    ),
}
# Of a LLaVA.
WHOLE_IMAGES = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor")


def read_preprocess(folder: Path, *, image_size: int, kinds: Sequence[str] = WHOLE_IMAGES) -> ImageProcessorConfig:
    """Our config of what the folder's files say, for an encoder that reads squares of ``image_size``.

    Raises ``NotFoundError`` where neither file is there, and ``InvalidArgumentError`` naming what has no counterpart;
    ``kinds`` are the classes of transformers that are read.
    """
    values, where = read_image_processor(folder)
    file = _file(values, where, kinds)
    pixels = read_pixels(file, where)
    resize, side = _resize(file, where)
    if side != image_size:
        raise invalid(f"{where}.size", f"makes images of {side} pixels, the encoder reads {image_size}")
    colors: dict[str, Any] = {"background": _mean_color(file.image_mean)} if resize == "pad" else {}
    try:
        return ImageProcessorConfig(image_size=side, resize=resize, **pixels, **colors)
    except ValueError as error:
        raise InvalidArgumentError(f"{where}: {error}") from None


def write_squash(config: ImageProcessorConfig, kind: str) -> dict[str, Any]:
    """``preprocessor_config.json`` of the class ``kind``, which brings every image onto the square."""
    square = {"height": config.image_size, "width": config.image_size}
    return configs.to_plain(replace(_DEFAULTS[kind], size=square, crop_size=None, **write_pixels(config)))


def read_pixels(file: Any, where: str) -> dict[str, Any]:
    """What any image processor's file says of pixels wherever they lie, by our names."""
    for name in ("do_resize", "do_rescale"):
        if not getattr(file, name):
            raise invalid(f"{where}.{name}", "False is not supported, only True")
    if abs(255 * file.rescale_factor - 1) > 1e-6:
        raise invalid(f"{where}.rescale_factor", f"{file.rescale_factor} is not supported, only 1/255")
    if file.resample not in _RESAMPLES:
        raise invalid(f"{where}.resample", f"{file.resample} is none of {_RESAMPLES}")
    mean, std = (file.image_mean, file.image_std) if file.do_normalize else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return {"resample": _RESAMPLES[file.resample], "mean": mean, "std": std}


def write_pixels(config: ImageProcessorConfig) -> dict[str, Any]:
    """The same by their names."""
    resample = next(number for number, name in _RESAMPLES.items() if name == config.resample)
    return {"resample": resample, "image_mean": config.mean, "image_std": config.std}


def write_preprocess(config: ImageProcessorConfig) -> dict[str, Any]:
    """``preprocessor_config.json`` of our config; ``InvalidArgumentError`` names what it has no word for."""
    side = config.image_size
    square = {"height": side, "width": side}
    pixels = write_pixels(config)
    if config.resize == "squash":
        return {"processor_class": "LlavaProcessor", **write_squash(config, "SiglipImageProcessor")}
    if config.resize == "crop":
        shortest = {"shortest_edge": side}
        file = replace(_DEFAULTS["CLIPImageProcessor"], size=shortest, crop_size=square, **pixels)
    elif config.resize == "pad":
        if config.background != (color := _mean_color(config.mean)):
            raise invalid(
                "preprocess.background", f"{config.background} pads images, which in transformers the mean {color} does"
            )
        file = replace(
            _DEFAULTS["LlavaImageProcessor"],
            size=square,
            crop_size=square,
            do_center_crop=False,
            do_pad=True,
            **pixels,
        )
    else:
        raise invalid("preprocess.resize", f"transformers' LLaVA has no word for {config.resize!r}")
    return {"processor_class": "LlavaProcessor", **configs.to_plain(file)}


def read_image_processor(folder: Path) -> tuple[dict[str, Any], str]:
    """The image processor's settings, and where they stand: with all others in newer folders, else by themselves."""
    if (folder / PROCESSOR_FILE).is_file():
        found = read_json(folder / PROCESSOR_FILE).get("image_processor")
        if isinstance(found, dict):
            return found, f"{PROCESSOR_FILE}.image_processor"
    if not (folder / IMAGE_FILE).is_file():
        raise NotFoundError(f"no image processor in {folder}: neither {IMAGE_FILE} nor {PROCESSOR_FILE} has it")
    return read_json(folder / IMAGE_FILE), IMAGE_FILE


def image_processor_kind(values: Mapping[str, Any], where: str, kinds: Sequence[str]) -> str:
    """The class that the file names, of whatever backend; ``InvalidArgumentError`` for one not among ``kinds``."""
    name = values.get("image_processor_type", values.get("feature_extractor_type"))
    kind = str(name).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if kind not in kinds:
        raise invalid(f"{where}.image_processor_type", f"unknown {name!r}; known: {', '.join(kinds)}")
    return kind


def _file(values: dict[str, Any], where: str, kinds: Sequence[str]) -> ImageFile:
    kind = image_processor_kind(values, where, kinds)
    known = {item.name for item in fields(ImageFile)}
    said = {key: value for key, value in values.items() if key in known and value is not None}
    return configs.build(ImageFile, {**vars(_DEFAULTS[kind]), **said, "image_processor_type": kind}, where=where)


def _resize(file: ImageFile, where: str) -> tuple[Any, int]:
    """Our mode and the side of the squares that it makes."""
    shortest, square = _sides(file.size, f"{where}.size")
    # A LLaVA-NeXT's pads the tiles of a batch for each other.
    if file.do_pad and file.image_processor_type != "LlavaNextImageProcessor":
        if file.image_processor_type != "LlavaImageProcessor":
            raise invalid(f"{where}.do_pad", f"a {file.image_processor_type} that pads is not supported")
        mode = "pad"
    elif square is None and not file.do_center_crop:
        raise invalid(f"{where}.do_center_crop", "False leaves images of many shapes, which the encoder does not read")
    else:
        mode = "squash" if square is not None else "crop"
    side = square if square is not None else shortest
    if file.do_center_crop and file.crop_size is not None and _sides(file.crop_size, f"{where}.crop_size")[0] != side:
        raise invalid(f"{where}.crop_size", f"{file.crop_size} of images of {side} pixels is not supported")
    return mode, side


def _sides(size: _Size, where: str) -> tuple[int, int | None]:
    """The shortest side, and that of the square where it is one."""
    if isinstance(size, int):  # of older files
        return size, None
    if shortest := size.get("shortest_edge"):
        return shortest, None
    height, width = size.get("height"), size.get("width")
    if height is None or height != width:
        raise invalid(where, f"expected a square or a shortest_edge, found {size}")
    return height, height


def _mean_color(mean: tuple[float, float, float]) -> Color:
    """The colour that ``LlavaImageProcessor`` pads with."""
    red, green, blue = (int(255 * value) for value in mean)
    return red, green, blue
