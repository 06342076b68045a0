"""Idefics2 folders (arXiv 2405.02246) into ``Mllm`` and back: SigLIP at native aspect ratios, a resampler, a decoder.

The parts' settings and names are those of ``encoders.hf``, ``connectors.hf`` and ``hf.convert``; here they are put
together. Every image, of whatever shape, takes as many tokens as the resampler has latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from rebus import config as configs
from rebus import registry
from rebus.data.encoding import EncodingConfig
from rebus.data.preprocess import ImageProcessorConfig
from rebus.errors import DataLossError, InvalidArgumentError, invalid
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors import hf as connectors
from rebus.models.connectors.perceiver_resampler import PerceiverResampler, PerceiverResamplerConfig
from rebus.models.encoders.hf import idefics2 as vision_tower
from rebus.models.encoders.siglip import SiglipNavit, SiglipNavitConfig
from rebus.models.hf.convert import (
    MAX_BYTES,
    MAX_SHARD_BYTES,
    by_family_name,
    changed_settings,
    check_depth,
    check_sizes,
    check_tensors,
    decoder_parts,
    decoder_slots,
    family_of,
    fill_decoder,
    read_config,
    read_specials,
    require_empty,
    write_config,
    write_parts,
)
from rebus.models.hf.family import Family
from rebus.models.hf.files import Stored, is_float, read_json, stored_tensors
from rebus.models.hf.native_images import read_native, write_native
from rebus.models.hf.weights import Shape
from rebus.models.hf.whole import Kind, Tower, encoder_config, find_parts, is_last, read_vision
from rebus.models.io import CONFIG_FILE
from rebus.models.mllm import Mllm, MllmConfig

IDEFICS2 = Kind(
    title="an Idefics2",
    model_type="idefics2",
    architecture="Idefics2ForConditionalGeneration",
    processor="Idefics2Processor",
    towers=(Tower("siglip-navit", "idefics2_vision", SiglipNavit, vision_tower, "full"),),
    text_model_type="mistral",
    connector=("perceiver-resampler", PerceiverResampler),
    image_token="image_token_id",
)
_TEXT, _VISION, _CONNECTOR = "model.text_model.", "model.vision_model.", "model.connector."


@dataclass(frozen=True, kw_only=True)
class Idefics2File:
    """``Idefics2Config`` of transformers, with its defaults; the text's and the encoder's configs must be there."""

    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    perceiver_config: dict[str, Any] = field(default_factory=dict)
    image_token_id: int = 32_001
    tie_word_embeddings: bool = False


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
    file = _read_file(values)
    family = family_of(file.text_config, where=f"{CONFIG_FILE}.text_config")
    decoder, vocab_size = read_config(file.text_config, family)
    resampler = _read_resampler(file, write_config(family, decoder, vocab_size))
    preprocess = read_native(folder)
    encoder = _read_encoder(file, preprocess)
    if not 0 <= file.image_token_id < vocab_size:
        raise invalid(f"{CONFIG_FILE}.image_token_id", f"{file.image_token_id} is outside vocab_size={vocab_size}")
    tensors = _by_published_name(stored_tensors(folder, max_bytes=max_bytes), family, file)
    check_depth(decoder, tensors, other_layers=max(encoder.num_layers, resampler.num_layers))
    settings = MllmConfig(
        encoder={"name": "siglip-navit", **changed_settings(encoder)},
        connector={"name": "perceiver-resampler", **changed_settings(resampler)},
        decoder={"name": family.name, **changed_settings(decoder)},
        vocab_size=vocab_size,
        image_token_id=file.image_token_id,
        special_tokens=_read_specials(values, file),
        preprocess=preprocess,
        encoding=EncodingConfig(max_length_tokens=decoder.max_positions),
    )
    with torch.device("meta"):
        model = Mllm(settings)
    check_tensors(_shapes(model, family), {name: (t.shape, is_float(t)) for name, t in tensors.items()})
    _load(model, family, file, tensors)
    return model.eval()


def _load(model: Mllm, family: Family, file: Idefics2File, tensors: Mapping[str, Stored]) -> None:
    """Puts the tensors, which are known to fit, into a model without memory."""
    vision = {name: tensor.read().float() for name, tensor in tensors.items() if name.startswith(_VISION)}
    model.vision_encoder.load_state_dict(vision_tower.from_hf(file.vision_config, vision)[1], assign=True)
    model.connector.to_empty(device="cpu")
    connector = {name: tensor.read() for name, tensor in tensors.items() if name.startswith(_CONNECTOR)}
    connectors.load_hf(model.connector, connector, prefix=_CONNECTOR)
    slots = decoder_slots(family, model.decoder)
    fill_decoder(model.decoder, slots, lambda name: tensors[_text_name(name, family)].read())


def _shapes(model: Mllm, family: Family) -> dict[str, Shape]:
    """The published names of all tensors, and their shapes."""
    vision = vision_tower.to_hf(encoder_config(model), model.vision_encoder.state_dict())[1]
    found = {_VISION + name: tuple(tensor.shape) for name, tensor in vision.items()}
    found |= {_CONNECTOR + name: tuple(tensor.shape) for name, tensor in connectors.to_hf(model.connector).items()}
    return found | {_text_name(slot.theirs, family): slot.shape for slot in decoder_slots(family, model.decoder)}


def _read_file(values: Mapping[str, Any]) -> Idefics2File:
    if values.get("quantization_config"):
        raise invalid(f"{CONFIG_FILE}.quantization_config", "quantised weights are not read")
    known = {item.name for item in fields(Idefics2File)}
    file = configs.build(Idefics2File, {key: value for key, value in values.items() if key in known}, where=CONFIG_FILE)
    # Said of the whole, it holds for the part.
    text = {"model_type": IDEFICS2.text_model_type, **file.text_config, "tie_word_embeddings": file.tie_word_embeddings}
    vision = {key: value for key, value in file.vision_config.items() if value is not None}
    return replace(file, text_config=text, vision_config=vision)


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


def _read_specials(values: Mapping[str, Any], file: Idefics2File) -> SpecialTokens:
    """The language model's ids, and those that the whole says anew."""
    return read_specials({**file.text_config, **{key: value for key, value in values.items() if value is not None}})


def _by_published_name(tensors: Mapping[str, Stored], family: Family, file: Idefics2File) -> dict[str, Stored]:
    """Tensors by the names that published files have; those of the bare model lack ``model.``."""
    text: dict[str, Stored] = {}
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        whole, into = name if name.startswith(("model.", "lm_head.")) else f"model.{name}", found
        if whole.startswith((_TEXT, "lm_head.")):
            whole, into = whole.removeprefix(_TEXT), text
        if into is found and whole.endswith("embeddings.position_ids"):
            continue
        if whole in into:
            raise DataLossError(f"{into[whole].name} and {name} are the same tensor")
        into[whole] = tensor
    by_name = by_family_name(family, file.text_config, text)
    return found | {_text_name(name, family): tensor for name, tensor in by_name.items()}


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
    require_empty(folder)
    check_idefics2(model)
    write_native(model.config.preprocess)
    family, text, text_tensors = decoder_parts(model.decoder, special_tokens or model.config.special_tokens)
    width = model.connector.modality_projection.gate_proj.out_features
    if width != (expected := _block_width(text, where="decoder")):
        raise invalid("connector.projection_hidden_width", f"{width} is not {expected}, that of the decoder's blocks")
    vision, vision_tensors = vision_tower.to_hf(encoder_config(model), model.vision_encoder.state_dict())
    tensors = {_VISION + name: tensor for name, tensor in vision_tensors.items()}
    tensors |= {_CONNECTOR + name: tensor for name, tensor in connectors.to_hf(model.connector).items()}
    tensors |= {_text_name(name, family): tensor for name, tensor in text_tensors.items()}
    values = {
        "model_type": IDEFICS2.model_type,
        "architectures": [IDEFICS2.architecture],
        "text_config": text,
        "vision_config": vision,
        "perceiver_config": _perceiver_file(model),
        "image_token_id": model.config.image_token_id,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "dtype": text["dtype"],
    }
    write_parts(values, tensors, folder, max_shard_bytes=max_shard_bytes)


def check_idefics2(model: Mllm) -> None:
    """``InvalidArgumentError`` names what an Idefics2 has no word for."""
    find_parts(model, IDEFICS2)
    encoder = encoder_config(model)
    if not is_last(encoder):
        raise invalid("encoder.feature_layer", f"an Idefics2 reads the last layer, not {encoder.feature_layer}")


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


def _text_name(name: str, family: Family) -> str:
    """The published name of a tensor of the text model."""
    return name if name.startswith("lm_head.") else _TEXT + name.removeprefix(family.prefix)
