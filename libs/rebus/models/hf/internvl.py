"""InternVL folders (``InternVLForConditionalGeneration``) into ``Mllm`` and back: InternViT, pixel shuffle, a decoder.

Encoder and connector see one tile at a time, each of ``image_tokens`` tokens. How images become tiles is in ``tiles``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rebus import registry
from rebus.errors import invalid
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors.pixel_shuffle import PixelShuffleConfig, PixelShuffleConnector
from rebus.models.encoders.hf import internvit
from rebus.models.encoders.internvit import InternVit, InternVitConfig
from rebus.models.hf.convert import MAX_BYTES, MAX_SHARD_BYTES, changed_settings
from rebus.models.hf.files import read_json
from rebus.models.hf.tiles import media_of, most_tiles, read_tiles, write_tiles
from rebus.models.hf.whole import (
    Kind,
    Tower,
    WholeFile,
    encoder_config,
    find_tower,
    is_last,
    read_encoder,
    read_file,
    read_whole,
    tower_for,
    write_whole,
)
from rebus.models.io import CONFIG_FILE
from rebus.models.mllm import Mllm

INTERNVL = Kind(
    title="an InternVL",
    model_type="internvl",
    architecture="InternVLForConditionalGeneration",
    processor="InternVLProcessor",
    towers=(Tower("internvit", "internvl_vision", InternVit, internvit, "default"),),
    text_model_type="qwen2",
    connector=("pixel-shuffle", PixelShuffleConnector),
    image_token="image_token_id",
    splitter="aspect",
)


@dataclass(frozen=True, kw_only=True)
class InternVLFile(WholeFile):
    """``InternVLConfig`` of transformers, with its defaults."""

    image_token_id: int = 151667
    downsample_ratio: float = 0.5
    vision_feature_layer: int | list[int] = -1


def read_internvl(folder: Path, *, max_bytes: int = MAX_BYTES) -> Mllm:
    """The InternVL of a Hugging Face folder: float32, in evaluation mode, on the CPU.

    Names, shapes and kinds are checked whole before a weight is used. Raises what ``convert.read_folder`` raises, for
    the same reasons, and what ``read_tiles`` raises.
    """
    values = read_json(folder / CONFIG_FILE)
    file = read_file(values, InternVLFile, INTERNVL)
    tower = find_tower(file, INTERNVL)
    encoder = read_encoder(file, tower)
    if encoder.final_norm and is_last(encoder) and encoder.feature_layer != -1:
        raise invalid(
            f"{CONFIG_FILE}.vision_feature_layer",
            f"{encoder.feature_layer} is the last layer before its norm, which is not supported; -1 is the one after",
        )
    connector = changed_settings(PixelShuffleConfig(merge_side=_merge_side(file, encoder)))
    tiles = read_tiles(folder, image_size=encoder.image_size)
    return read_whole(
        folder,
        values,
        file,
        INTERNVL,
        tower=tower,
        encoder=encoder,
        connector=connector,
        preprocess=tiles.image,
        media=media_of(tiles),
        max_tiles=most_tiles(tiles),
        max_bytes=max_bytes,
    )


def _merge_side(file: InternVLFile, encoder: InternVitConfig) -> int:
    """Side of the square of patches that become one token."""
    ratio, side = file.downsample_ratio, encoder.position_side
    merged = round(1 / ratio) if 0 < ratio <= 1 and ratio * side >= 1 else 0
    if not merged or abs(merged * ratio - 1) > 1e-6 or side % merged:
        raise invalid(
            f"{CONFIG_FILE}.downsample_ratio", f"{ratio} of a grid of {side} x {side} makes no whole squares of patches"
        )
    return merged


def write_internvl(
    model: Mllm,
    folder: Path,
    *,
    special_tokens: SpecialTokens | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a new folder that ``AutoModelForImageTextToText.from_pretrained`` opens; raises what ``write_whole`` does.

    A text model whose table transformers' InternVL cannot tie (GPT-2, OPT) is written with an output layer of its own.
    """
    check_internvl(model)
    write_tiles(model.config.preprocess, model.config.media)
    config = encoder_config(model)
    own = {
        "downsample_ratio": 1 / _connector_config(model).merge_side,
        # The only name of the last layer after its norm.
        "vision_feature_layer": -1 if config.final_norm and is_last(config) else config.feature_layer,
    }
    write_whole(model, folder, INTERNVL, own, special_tokens=special_tokens, max_shard_bytes=max_shard_bytes)


def check_internvl(model: Mllm) -> None:
    """Raises ``InvalidArgumentError`` naming what of encoder and connector an InternVL has no word for."""
    tower_for(model, INTERNVL)
    if (projection := _connector_config(model).projection) != "mlp":
        raise invalid("connector.projection", f"an InternVL has no {projection!r}, only mlp")


def _connector_config(model: Mllm) -> PixelShuffleConfig:
    return registry.settings("connector", model.config.connector)[1]
