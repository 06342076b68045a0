"""LLaVA-NeXT folders into ``Mllm`` and back: a LLaVA whose images are cut into tiles, as its config lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rebus import registry
from rebus.errors import InvalidArgumentError, invalid
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors.tiled_mlp import TiledMlp, TiledMlpConfig
from rebus.models.hf.any_resolution_images import read_any_resolution, write_any_resolution
from rebus.models.hf.convert import MAX_BYTES, MAX_SHARD_BYTES, changed_settings
from rebus.models.hf.files import read_json
from rebus.models.hf.llava import LLAVA, LlavaFile, check_llava, check_projector, encoder_of
from rebus.models.hf.whole import find_tower, read_file, read_whole, write_whole
from rebus.models.io import CONFIG_FILE
from rebus.models.mllm import Mllm

LLAVA_NEXT = replace(
    LLAVA,
    title="a LLaVA-NeXT",
    model_type="llava_next",
    architecture="LlavaNextForConditionalGeneration",
    processor="LlavaNextProcessor",
    connector=("tiled-mlp", TiledMlp),
)
Pinpoints = list[tuple[int, int]]
_PINPOINTS: Pinpoints = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@dataclass(frozen=True, kw_only=True)
class LlavaNextFile(LlavaFile):
    """``LlavaNextConfig`` of transformers, with its defaults."""

    tie_word_embeddings: bool | None = False
    # Height and width of the images that are cut into tiles, in pixels.
    image_grid_pinpoints: Pinpoints | None = None


def read_llava_next(folder: Path, *, max_bytes: int = MAX_BYTES) -> Mllm:
    """The LLaVA-NeXT of a Hugging Face folder: float32, in evaluation mode, on the CPU.

    Names, shapes and kinds are checked whole before a weight is used. Raises what ``convert.read_folder`` raises, for
    the same reasons, and what ``read_any_resolution`` raises.
    """
    values = read_json(folder / CONFIG_FILE)
    file = read_file(values, LlavaNextFile, LLAVA_NEXT)
    check_projector(file)
    tower = find_tower(file, LLAVA_NEXT)
    encoder = encoder_of(file, tower)
    pinpoints = file.image_grid_pinpoints or _PINPOINTS
    connector = TiledMlpConfig(grids=_grids(pinpoints, encoder.image_size))
    preprocess = read_any_resolution(folder, image_size=encoder.image_size, pinpoints=pinpoints)
    return read_whole(
        folder,
        values,
        file,
        LLAVA_NEXT,
        tower=tower,
        encoder=encoder,
        connector=changed_settings(connector),
        preprocess=preprocess,
        max_tiles=1 + max(rows * columns for rows, columns in connector.grids),
        max_bytes=max_bytes,
    )


def write_llava_next(
    model: Mllm,
    folder: Path,
    *,
    special_tokens: SpecialTokens | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a new folder that ``AutoModelForImageTextToText.from_pretrained`` opens; raises what ``write_whole`` does.

    A text model whose table transformers cannot tie (GPT-2, OPT) is written with an output layer of its own.
    """
    check_llava_next(model)
    pinpoints = pinpoints_of(model)
    write_any_resolution(model.config.preprocess, pinpoints)
    own = {"multimodal_projector_bias": True, "image_grid_pinpoints": pinpoints}
    write_whole(model, folder, LLAVA_NEXT, own, special_tokens=special_tokens, max_shard_bytes=max_shard_bytes)


def check_llava_next(model: Mllm) -> None:
    """Raises ``InvalidArgumentError`` naming what of encoder and connector a LLaVA-NeXT has no word for."""
    check_llava(model, LLAVA_NEXT)


def pinpoints_of(model: Mllm) -> Pinpoints:
    """Height and width, in pixels, of all tiles of each grid."""
    config: TiledMlpConfig = registry.settings("connector", model.config.connector)[1]
    side = model.vision_encoder.image_size
    return [(rows * side, columns * side) for rows, columns in config.grids]


def _grids(pinpoints: Pinpoints, side: int) -> tuple[tuple[int, int], ...]:
    """Rows and columns of tiles of ``side``; ``InvalidArgumentError`` where they do not fill an image."""
    where = f"{CONFIG_FILE}.image_grid_pinpoints"
    for height, width in pinpoints:
        if height % side or width % side:
            raise invalid(where, f"tiles of {side} pixels do not fill {height}x{width}")
    grids = tuple((height // side, width // side) for height, width in pinpoints)
    try:
        TiledMlpConfig(grids=grids)
    except ValueError as error:
        raise InvalidArgumentError(f"{where}: {error}") from None
    return grids
