"""LLaVA folders into ``Mllm`` and back: a CLIP or SigLIP tower, an MLP, and a decoder of any of the families.

The parts' settings and names are those of ``encoders.hf``, ``connectors.hf`` and ``hf.convert``; here they are put
together. Names are read as transformers 4 and 5 write them and written as published, which both read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from rebus import config as configs
from rebus import registry
from rebus.data.encoding import EncodingConfig
from rebus.errors import DataLossError, InvalidArgumentError, invalid
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors import hf as connectors
from rebus.models.connectors.mlp import MlpConnector
from rebus.models.encoders.clip import ClipVision
from rebus.models.encoders.hf import clip, siglip
from rebus.models.encoders.layered import layer_number
from rebus.models.encoders.siglip import SiglipVision
from rebus.models.encoders.vision_transformer import VisionTransformerConfig
from rebus.models.hf.convert import (
    MAX_BYTES,
    MAX_SHARD_BYTES,
    by_family_name,
    changed_settings,
    check_depth,
    check_tensors,
    decoder_parts,
    decoder_slots,
    family_of,
    fill_decoder,
    read_config,
    read_specials,
    require_empty,
    write_parts,
)
from rebus.models.hf.family import Family
from rebus.models.hf.files import Stored, is_float, read_json, stored_tensors
from rebus.models.hf.image_processors import read_preprocess, write_preprocess
from rebus.models.hf.vision_part import WHERE as VISION_CONFIG
from rebus.models.hf.vision_part import read_vision
from rebus.models.hf.weights import Shape
from rebus.models.io import CONFIG_FILE
from rebus.models.mllm import Mllm, MllmConfig

MODEL_TYPE, ARCHITECTURE = "llava", "LlavaForConditionalGeneration"
_TEXT, _VISION, _PROJECTOR = "language_model.", "vision_tower.vision_model.", "multi_modal_projector."
Strategy = Literal["default", "full"]


@dataclass(frozen=True, kw_only=True)
class LlavaFile:
    """``LlavaConfig`` of transformers, with its defaults; both parts' configs must be there."""

    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    image_token_index: int = 32000
    projector_hidden_act: str = "gelu"
    vision_feature_select_strategy: Strategy = "default"
    vision_feature_layer: int | list[int] = -2
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool | None = None


@dataclass(frozen=True)
class Tower:
    """An encoder that LLaVA has, on both sides."""

    # Our name, and transformers' ``model_type``.
    name: str
    model_type: str
    encoder: type[nn.Module]
    hf: ModuleType
    # The only one that selects the patches and nothing else: ``default`` drops the first token.
    strategy: Strategy


_TOWERS = (
    Tower("clip", "clip_vision_model", ClipVision, clip, "default"),
    Tower("siglip", "siglip_vision_model", SiglipVision, siglip, "full"),
)


def read_llava(folder: Path, *, max_bytes: int = MAX_BYTES) -> Mllm:
    """The LLaVA of a Hugging Face folder: float32, in evaluation mode, on the CPU.

    Names, shapes and kinds are checked whole before a weight is used. Raises what ``convert.read_folder`` raises, for
    the same reasons, and what ``read_preprocess`` raises.
    """
    values = read_json(folder / CONFIG_FILE)
    file = _read_file(values)
    family = family_of(file.text_config, where=f"{CONFIG_FILE}.text_config")
    tower = _tower(file)
    tensors = _by_published_name(stored_tensors(folder, max_bytes=max_bytes), family, file)
    encoder = _read_encoder(file, tower)
    decoder, vocab_size = read_config(file.text_config, family)
    check_depth(decoder, tensors, other_layers=encoder.num_layers)
    settings = MllmConfig(
        encoder={"name": tower.name, **changed_settings(encoder)},
        connector={"name": "mlp"},
        decoder={"name": family.name, **changed_settings(decoder)},
        vocab_size=vocab_size,
        image_token_id=_image_token(file, vocab_size),
        special_tokens=_read_specials(values, file),
        preprocess=read_preprocess(folder, image_size=encoder.image_size),
        encoding=EncodingConfig(max_length_tokens=decoder.max_positions),
    )
    with torch.device("meta"):
        model = Mllm(settings)
    check_tensors(_shapes(model, family, tower), {name: (t.shape, is_float(t)) for name, t in tensors.items()})
    _load(model, family, tower, file, tensors)
    return model.eval()


def _load(model: Mllm, family: Family, tower: Tower, file: LlavaFile, tensors: Mapping[str, Stored]) -> None:
    """Puts the tensors, which are known to fit, into a model without memory."""
    vision = {name: tensor.read().float() for name, tensor in tensors.items() if name.startswith(_VISION)}
    model.vision_encoder.load_state_dict(tower.hf.from_hf(file.vision_config, vision)[1], assign=True)
    model.connector.to_empty(device="cpu")
    projector = {name: tensor.read() for name, tensor in tensors.items() if name.startswith(_PROJECTOR)}
    connectors.load_hf(model.connector, projector, prefix=_PROJECTOR)
    slots = decoder_slots(family, model.decoder)
    fill_decoder(model.decoder, slots, lambda name: tensors[_TEXT + name].read())


def _shapes(model: Mllm, family: Family, tower: Tower) -> dict[str, Shape]:
    """The published names of all tensors, and their shapes."""
    vision = tower.hf.to_hf(_encoder_config(model), model.vision_encoder.state_dict())[1]
    found = {f"vision_tower.{name}": tuple(tensor.shape) for name, tensor in vision.items()}
    found |= {_PROJECTOR + name: tuple(tensor.shape) for name, tensor in connectors.to_hf(model.connector).items()}
    return found | {_TEXT + slot.theirs: slot.shape for slot in decoder_slots(family, model.decoder)}


def _read_file(values: Mapping[str, Any]) -> LlavaFile:
    if values.get("quantization_config"):
        raise invalid(f"{CONFIG_FILE}.quantization_config", "quantised weights are not read")
    known = {item.name for item in fields(LlavaFile)}
    file = configs.build(LlavaFile, {key: value for key, value in values.items() if key in known}, where=CONFIG_FILE)
    if file.projector_hidden_act != "gelu":
        raise invalid(
            f"{CONFIG_FILE}.projector_hidden_act", f"{file.projector_hidden_act!r} is not supported, only gelu"
        )
    if not file.multimodal_projector_bias:
        raise invalid(f"{CONFIG_FILE}.multimodal_projector_bias", "False is not supported, only True")
    # Said of the whole, it holds for the part.
    tied = {"tie_word_embeddings": True} if file.tie_word_embeddings else {}
    vision = {key: value for key, value in file.vision_config.items() if value is not None}
    return replace(file, text_config={"model_type": "llama", **file.text_config, **tied}, vision_config=vision)


def _tower(file: LlavaFile) -> Tower:
    vision = read_vision(file.vision_config)
    for tower in _TOWERS:
        if tower.model_type == vision.model_type:
            if (strategy := file.vision_feature_select_strategy) != tower.strategy:
                raise invalid(
                    f"{CONFIG_FILE}.vision_feature_select_strategy",
                    f"{strategy!r} of {tower.name} is not supported, only {tower.strategy!r}",
                )
            return tower
    names = ", ".join(tower.model_type for tower in _TOWERS)
    raise invalid(f"{VISION_CONFIG}.model_type", f"unknown {vision.model_type!r}; known: {names}")


def _read_encoder(file: LlavaFile, tower: Tower) -> VisionTransformerConfig:
    """The encoder's settings, with the layer that LLaVA reads."""
    layers = file.vision_feature_layer
    layer = layers[0] if isinstance(layers, list) and len(layers) == 1 else layers
    if not isinstance(layer, int):
        raise invalid(f"{CONFIG_FILE}.vision_feature_layer", f"{layer} are several layers; one is supported")
    try:
        config = replace(tower.hf.config_from_hf(file.vision_config), feature_layer=layer)
        # Hidden states are what the last block returns.
        return replace(config, feature_norm=False) if tower.name == "siglip" and _is_last(config) else config
    except ValueError as error:
        raise InvalidArgumentError(f"{VISION_CONFIG}: {error}") from None


def _image_token(file: LlavaFile, vocab_size: int) -> int:
    if not 0 <= file.image_token_index < vocab_size:
        raise invalid(
            f"{CONFIG_FILE}.image_token_index", f"{file.image_token_index} is outside vocab_size={vocab_size}"
        )
    return file.image_token_index


def _read_specials(values: Mapping[str, Any], file: LlavaFile) -> SpecialTokens:
    """The language model's ids, and those that the whole says anew."""
    return read_specials({**file.text_config, **{key: value for key, value in values.items() if value is not None}})


def _by_published_name(tensors: Mapping[str, Stored], family: Family, file: LlavaFile) -> dict[str, Stored]:
    """Tensors by the names that published files have: the text model's whole, each part's behind its prefix."""
    text: dict[str, Stored] = {}
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        part, into = name.removeprefix("model."), found
        if part.startswith("lm_head."):
            into = text
        elif part.startswith(_TEXT):
            # transformers 5 calls every family's bare model so, and leaves even that out.
            part, into = part.removeprefix(_TEXT).removeprefix("model."), text
        elif part.startswith("vision_tower."):
            part = _VISION + part.removeprefix("vision_tower.").removeprefix("vision_model.")
        if into is found and part.endswith("embeddings.position_ids"):
            continue
        if part in into:
            raise DataLossError(f"{into[part].name} and {name} are the same tensor")
        into[part] = tensor
    by_name = by_family_name(family, file.text_config, text)
    return found | {_TEXT + name: tensor for name, tensor in by_name.items()}


def write_llava(
    model: Mllm,
    folder: Path,
    *,
    special_tokens: SpecialTokens | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a new folder that ``AutoModelForImageTextToText.from_pretrained`` opens.

    A text model whose table transformers' LLaVA cannot tie (GPT-2, OPT) is written with an output layer of its own.
    Raises ``InvalidArgumentError`` naming what a LLaVA has no word for, ``AlreadyExistsError`` where the folder holds
    anything.
    """
    require_empty(folder)
    tower = tower_of(model)
    write_preprocess(model.config.preprocess)
    family, text, text_tensors = decoder_parts(model.decoder, special_tokens or model.config.special_tokens)
    if text["tie_word_embeddings"] and not any(rule.theirs == "embed_tokens" for rule in family.rules):
        text["tie_word_embeddings"] = False
        text_tensors["lm_head.weight"] = model.decoder.embed_tokens.weight
    vision, vision_tensors = tower.hf.to_hf(_encoder_config(model), model.vision_encoder.state_dict())
    tensors = {f"vision_tower.{name}": tensor for name, tensor in vision_tensors.items()}
    tensors |= {_PROJECTOR + name: tensor for name, tensor in connectors.to_hf(model.connector).items()}
    tensors |= {_text_name(name, family): tensor for name, tensor in text_tensors.items()}
    values = {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "text_config": text,
        "vision_config": vision,
        "image_token_index": model.config.image_token_id,
        "image_seq_length": model.image_tokens,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": model.vision_encoder.feature_layer,
        "vision_feature_select_strategy": tower.strategy,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "dtype": text["dtype"],
    }
    write_parts(values, tensors, folder, max_shard_bytes=max_shard_bytes)


def tower_of(model: Mllm) -> Tower:
    """The encoder's tower; ``InvalidArgumentError`` names what else than the decoder a LLaVA has no word for."""
    encoder, connector, names = model.vision_encoder, model.connector, model.config
    tower = next((tower for tower in _TOWERS if type(encoder) is tower.encoder), None)
    if tower is None:
        raise invalid("encoder", f"a LLaVA has no {names.encoder['name']!r}, only {', '.join(t.name for t in _TOWERS)}")
    if type(connector) is not MlpConnector:
        raise invalid("connector", f"a LLaVA has no {names.connector['name']!r}, only mlp")
    if connector.fc1.out_features != connector.fc2.out_features:
        raise invalid(
            "connector.hidden_width", f"{connector.fc1.out_features} is not the decoder's {connector.fc2.out_features}"
        )
    config = _encoder_config(model)
    if config.position_size != config.image_size:
        raise invalid(
            "encoder.trained_size",
            f"{config.trained_size} is not image_size={config.image_size}: a LLaVA does not resize",
        )
    if getattr(config, "feature_norm", False) and _is_last(config):
        raise invalid("encoder.feature_norm", "a LLaVA reads the last layer before its norm: feature_norm=False")
    return tower


def _encoder_config(model: Mllm) -> Any:
    return registry.settings("encoder", model.config.encoder)[1]


def _is_last(config: VisionTransformerConfig) -> bool:
    """Whether the features are those of the last layer."""
    return layer_number(config.feature_layer, config.num_layers) == config.num_layers


def _text_name(name: str, family: Family) -> str:
    """The published name of a tensor of the text model; transformers 5 reads no other prefix than ``model.``."""
    return _TEXT + (name if name.startswith("lm_head.") else f"model.{name.removeprefix(family.prefix)}")
