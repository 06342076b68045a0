"""Idefics2 folders (arXiv 2405.02246) into ``Mllm`` and back: SigLIP at native aspect ratios, a resampler, a decoder.

The parts' settings and names are those of ``encoders.hf``, ``connectors.hf`` and ``hf.convert``; here they are put
together. Every image, of whatever shape, takes as many tokens as the resampler has latents; an image that is split is
five of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rebus import config as configs
from rebus import registry
from rebus.data.preprocess import ImageProcessorConfig
from rebus.errors import InvalidArgumentError, invalid
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors.perceiver_resampler import PerceiverResampler, PerceiverResamplerConfig
from rebus.models.encoders.hf import idefics2 as vision_tower
from rebus.models.encoders.siglip import SiglipNavit, SiglipNavitConfig
from rebus.models.hf.convert import (
    FAMILIES,
    MAX_BYTES,
    MAX_SHARD_BYTES,
    changed_settings,
    check_sizes,
    family_of,
    read_config,
    write_config,
)
from rebus.models.hf.files import read_json
from rebus.models.hf.native_images import read_native, write_native
from rebus.models.hf.whole import (
    Kind,
    Names,
    Tower,
    WholeFile,
    encoder_config,
    is_last,
    read_file,
    read_vision,
    read_whole,
    tower_for,
    write_whole,
)
from rebus.models.io import CONFIG_FILE
from rebus.models.mllm import Mllm

IDEFICS2 = Kind(
    title="an Idefics2",
    model_type="idefics2",
    architecture="Idefics2ForConditionalGeneration",
    processor="Idefics2Processor",
    towers=(Tower("siglip-navit", "idefics2_vision", SiglipNavit, vision_tower, "full"),),
    text_model_type="mistral",
    connector=("perceiver-resampler", PerceiverResampler),
    image_token="image_token_id",
    has_projector=False,
    resizes=True,
    splitter="quarters",
    names=Names(root="model.", text="text_model.", vision="vision_model.", connector="connector.", head="", bare=""),
)


@dataclass(frozen=True, kw_only=True)
class Idefics2File(WholeFile):
    """``Idefics2Config`` of transformers, with its defaults."""

    tie_word_embeddings: bool | None = False
    perceiver_config: dict[str, Any] = field(default_factory=dict)
    image_token_id: int = 32_001


@dataclass(frozen=True, kw_only=True)
class PerceiverFile:
    """What bears on the numbers of ``Idefics2PerceiverConfig``, with its defaults."""

    hidden_act: str = "silu"
    hidden_size: int = 4096
    rms_norm_eps: float = 1e-6
    resampler_n_latents: int = 64
    resampler_depth: int = 3
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    num_key_value_heads: int = 4


def read_idefics2(folder: Path, *, max_bytes: int = MAX_BYTES) -> Mllm:
    """The Idefics2 of a Hugging Face folder: float32, in evaluation mode, on the CPU.

    Names, shapes and kinds are checked whole before a weight is used. Raises what ``convert.read_folder`` raises, for
    the same reasons, and what ``read_native`` raises.
    """
    values = read_json(folder / CONFIG_FILE)
    file = read_file(values, Idefics2File, IDEFICS2)
    family = family_of(file.text_config, where=f"{CONFIG_FILE}.text_config")
    resampler = _read_resampler(file, write_config(family, *read_config(file.text_config, family)))
    preprocess, media = read_native(folder)
    return read_whole(
        folder,
        values,
        file,
        IDEFICS2,
        tower=IDEFICS2.towers[0],
        encoder=_read_encoder(file, preprocess),
        connector=changed_settings(resampler),
        preprocess=preprocess,
        media=media,
        max_tiles=1 if media is None else 5,
        max_bytes=max_bytes,
    )


def _read_encoder(file: Idefics2File, preprocess: ImageProcessorConfig) -> SiglipNavitConfig:
    """The encoder's settings: their size is that of the table of positions, ours that of the images too."""
    read_vision(file.vision_config)
    try:
        config = vision_tower.config_from_hf(file.vision_config)
        if preprocess.image_size != config.image_size:
            config = replace(config, image_size=preprocess.image_size, trained_size=config.image_size)
    except ValueError as error:
        raise InvalidArgumentError(f"{CONFIG_FILE}.vision_config: {error}") from None
    if preprocess.resize == "within" and preprocess.min_size < config.patch_size:
        raise invalid(
            f"{CONFIG_FILE}.vision_config.patch_size", f"{config.patch_size} exceeds images of {preprocess.min_size}"
        )
    return config


def _read_resampler(file: Idefics2File, text: Mapping[str, Any]) -> PerceiverResamplerConfig:
    """The connector's settings; ``text`` are those of the language model as its family's file says them."""
    where = f"{CONFIG_FILE}.perceiver_config"
    known = {item.name for item in fields(PerceiverFile)}
    said = {key: value for key, value in file.perceiver_config.items() if key in known}
    theirs = configs.build(PerceiverFile, said, where=where)
    check_sizes(theirs, where=where)
    if theirs.hidden_act != "silu":
        raise invalid(f"{where}.hidden_act", f"{theirs.hidden_act!r} is not supported, only silu")
    # Where widths differ transformers takes both of the text's.
    own = theirs.hidden_size == text["hidden_size"]
    try:
        return PerceiverResamplerConfig(
            num_tokens=theirs.resampler_n_latents,
            num_layers=theirs.resampler_depth,
            num_heads=theirs.resampler_n_heads,
            num_kv_heads=theirs.num_key_value_heads,
            head_width=theirs.resampler_head_dim,
            projection_hidden_width=_block_width(text, where=f"{CONFIG_FILE}.text_config"),
            norm_eps=theirs.rms_norm_eps if own else text["rms_norm_eps"],
        )
    except ValueError as error:
        raise InvalidArgumentError(f"{where}: {error}") from None


def write_idefics2(
    model: Mllm,
    folder: Path,
    *,
    special_tokens: SpecialTokens | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a new folder that ``AutoModelForImageTextToText.from_pretrained`` opens.

    Raises ``InvalidArgumentError`` naming what an Idefics2 has no word for, ``AlreadyExistsError`` where the folder
    holds anything.
    """
    check_idefics2(model)
    write_native(model.config.preprocess, model.config.media)
    own = {"perceiver_config": _perceiver_file(model)}
    write_whole(model, folder, IDEFICS2, own, special_tokens=special_tokens, max_shard_bytes=max_shard_bytes)


def check_idefics2(model: Mllm) -> None:
    """``InvalidArgumentError`` names what an Idefics2 has no word for."""
    tower_for(model, IDEFICS2)
    encoder = encoder_config(model)
    if not is_last(encoder):
        raise invalid("encoder.feature_layer", f"an Idefics2 reads the last layer, not {encoder.feature_layer}")
    family = FAMILIES[model.config.decoder["name"]]
    text = write_config(family, model.decoder.config, model.config.vocab_size)
    width = model.connector.modality_projection.gate_proj.out_features
    if width != (expected := _block_width(text, where="decoder")):
        raise invalid("connector.projection_hidden_width", f"{width} is not {expected}, that of the decoder's blocks")


def _block_width(text: Mapping[str, Any], *, where: str) -> int:
    """The inner width of the text's feed-forward blocks, like which the connector's projection is built."""
    if text.get("hidden_act") != "silu" or "intermediate_size" not in text:
        raise invalid(where, f"{text['model_type']} with {text.get('hidden_act')} has no blocks of Idefics2's: SwiGLU")
    return text["intermediate_size"]


def _perceiver_file(model: Mllm) -> dict[str, Any]:
    config: PerceiverResamplerConfig = registry.settings("connector", model.config.connector)[1]
    file = PerceiverFile(
        hidden_size=model.decoder.config.width,
        rms_norm_eps=config.norm_eps,
        resampler_n_latents=config.num_tokens,
        resampler_depth=config.num_layers,
        resampler_n_heads=config.num_heads,
        resampler_head_dim=config.head_width,
        num_key_value_heads=config.num_kv_heads,
    )
    return {"model_type": "idefics2_perceiver", **configs.to_plain(file)}
