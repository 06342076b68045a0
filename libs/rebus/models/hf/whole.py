"""Whole models of transformers, a tower, a projector and a language model, into ``Mllm`` and back.

The parts' settings and names are those of ``encoders.hf``, ``connectors.hf`` and ``hf.convert``; here they are put
together. Names are read as transformers 4 and 5 write them and written as published, which both read. What one kind of
model says in its ``config.json`` is in a module of its own: ``llava``, ``internvl``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from rebus import config as configs
from rebus import registry
from rebus.data.encoding import EncodingConfig
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.media import MediaSettings
from rebus.errors import DataLossError, InvalidArgumentError, invalid
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors import hf as connectors
from rebus.models.encoders.layered import layer_number
from rebus.models.encoders.vision_transformer import VisionTransformerConfig
from rebus.models.hf.convert import (
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
    write_parts,
)
from rebus.models.hf.family import Family
from rebus.models.hf.files import Stored, is_float, stored_tensors
from rebus.models.hf.weights import Shape
from rebus.models.io import CONFIG_FILE
from rebus.models.mllm import Mllm, MllmConfig

# The one tensor of a connector that stands by itself.
_NEWLINE = "image_newline"


@dataclass(frozen=True, kw_only=True)
class WholeFile:
    """What every kind's ``config.json`` says; both parts' configs must be there."""

    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    projector_hidden_act: str = "gelu"
    vision_feature_layer: int | list[int] = -2
    vision_feature_select_strategy: str = "default"
    tie_word_embeddings: bool | None = None


File = TypeVar("File", bound=WholeFile)


@dataclass(frozen=True, kw_only=True)
class VisionFile:
    """What bears on the numbers of the towers' configs; None is the class's default."""

    model_type: str | None = None
    image_size: int | list[int] | None = None
    patch_size: int | list[int] | None = None
    num_channels: int = 3
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    hidden_act: str | None = None
    layer_norm_eps: float | None = None
    # Of SigLIP.
    vision_use_head: bool | None = None
    # Of InternViT.
    norm_type: str | None = None
    attention_bias: bool | None = None
    use_qk_norm: bool | None = None
    use_mean_pooling: bool | None = None
    layer_scale_init_value: float | None = None


@dataclass(frozen=True)
class Tower:
    """An encoder that a kind of model may have, on both sides."""

    # Our name, and transformers' ``model_type``.
    name: str
    model_type: str
    encoder: type[nn.Module]
    hf: ModuleType
    # The only one that selects the patches and nothing else: ``default`` drops the first token.
    strategy: str
    # What published names have between the model's and the tower's own.
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What published names of tensors begin with."""

    # All but the output layer, and then each part.
    root: str = ""
    text: str = "language_model."
    vision: str = "vision_tower."
    connector: str = "multi_modal_projector."
    # The output layer, and what stands between ``text`` and a name of the family's bare model.
    head: str = "language_model."
    bare: str = "model."

    def of_text(self, name: str, family: Family) -> str:
        """The published name of a tensor that a language model of the family calls ``name``."""
        if name.startswith("lm_head."):
            return self.head + name
        return f"{self.root}{self.text}{self.bare}{name.removeprefix(family.prefix)}"

    def of_connector(self, name: str) -> str:
        """The published name of a tensor of the connector."""
        return self.root + (name if name == _NEWLINE else self.connector + name)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of whole models."""

    # With its article, for messages.
    title: str
    model_type: str
    architecture: str
    # The class that joins image processor and tokenizer.
    processor: str
    # The first is that of a config that names none.
    towers: tuple[Tower, ...]
    # Family of a language model that names none.
    text_model_type: str
    # Our connector: its name and its class.
    connector: tuple[str, type[nn.Module]]
    # What ``config.json`` calls the id of the token that stands for images.
    image_token: str
    # Whether it says which layer a projector reads and how it is built.
    has_projector: bool = True
    # Whether the encoder reads images of another size than it was trained with.
    resizes: bool = False
    # The splitter that images may have, if any.
    splitter: str | None = None
    names: Names = field(default_factory=lambda: Names())


def read_file(values: Mapping[str, Any], form: type[File], kind: Kind) -> File:
    """``config.json`` as the kind's dataclass ``form``; ``InvalidArgumentError`` names what is no value of it."""
    if values.get("quantization_config"):
        raise invalid(f"{CONFIG_FILE}.quantization_config", "quantised weights are not read")
    known = {item.name for item in fields(form)}
    file = configs.build(form, {key: value for key, value in values.items() if key in known}, where=CONFIG_FILE)
    if file.projector_hidden_act != "gelu":
        raise invalid(
            f"{CONFIG_FILE}.projector_hidden_act", f"{file.projector_hidden_act!r} is not supported, only gelu"
        )
    # Said of the whole, it holds for the part.
    tied = {"tie_word_embeddings": True} if file.tie_word_embeddings else {}
    text = {"model_type": kind.text_model_type, **file.text_config, **tied}
    vision = {key: value for key, value in file.vision_config.items() if value is not None}
    return replace(file, text_config=text, vision_config=vision)


def find_tower(file: WholeFile, kind: Kind) -> Tower:
    """The tower that the file names; ``InvalidArgumentError`` names what the kind has not or this code cannot do."""
    vision = read_vision(file.vision_config)
    for tower in kind.towers:
        if tower.model_type == (vision.model_type or kind.towers[0].model_type):
            if (strategy := file.vision_feature_select_strategy) != tower.strategy:
                raise invalid(
                    f"{CONFIG_FILE}.vision_feature_select_strategy",
                    f"{strategy!r} of {tower.name} is not supported, only {tower.strategy!r}",
                )
            return tower
    names = ", ".join(tower.model_type for tower in kind.towers)
    raise invalid(f"{CONFIG_FILE}.vision_config.model_type", f"unknown {vision.model_type!r}; known: {names}")


def read_vision(values: Mapping[str, Any]) -> VisionFile:
    """What of ``vision_config`` bears on the numbers; ``InvalidArgumentError`` names what is no such value."""
    where = f"{CONFIG_FILE}.vision_config"
    known = {item.name for item in fields(VisionFile)}
    vision = configs.build(VisionFile, {key: value for key, value in values.items() if key in known}, where=where)
    check_sizes(vision, where=where)
    if vision.num_channels != 3:
        raise invalid(f"{where}.num_channels", f"{vision.num_channels} is not supported, only 3")
    return vision


def read_encoder(file: WholeFile, tower: Tower) -> Any:
    """The encoder's settings, with the layer that the model reads."""
    layers = file.vision_feature_layer
    layer = layers[0] if isinstance(layers, list) and len(layers) == 1 else layers
    if not isinstance(layer, int):
        raise invalid(f"{CONFIG_FILE}.vision_feature_layer", f"{layer} are several layers; one is supported")
    try:
        return replace(tower.hf.config_from_hf(file.vision_config), feature_layer=layer)
    except ValueError as error:
        raise InvalidArgumentError(f"{CONFIG_FILE}.vision_config: {error}") from None


def read_whole(
    folder: Path,
    values: Mapping[str, Any],
    file: WholeFile,
    kind: Kind,
    *,
    tower: Tower,
    encoder: VisionTransformerConfig,
    connector: Mapping[str, Any],
    preprocess: ImageProcessorConfig,
    media: MediaSettings | None = None,
    max_tiles: int = 1,
    max_bytes: int,
) -> Mllm:
    """The model of ``folder``, whose ``config.json`` is ``values``: float32, in evaluation mode, on the CPU.

    ``tower``, ``encoder`` and ``connector`` are what the kind's module read, of the last those settings that are no
    defaults; an image becomes ``max_tiles`` squares at most. Names, shapes and kinds of tensors are checked whole
    before a weight is used. Raises what ``convert.read_folder`` raises, for the same reasons.
    """
    family = family_of(file.text_config, where=f"{CONFIG_FILE}.text_config")
    stored = stored_tensors(folder, max_bytes=max_bytes)
    file = _untied(file, stored)
    tensors = _by_published_name(stored, family, file, tower, kind.names)
    decoder, vocab_size = read_config(file.text_config, family)
    check_depth(decoder, tensors, other_layers=max(encoder.num_layers, connector.get("num_layers", 0)))
    image_token_id = getattr(file, kind.image_token)
    if not 0 <= image_token_id < vocab_size:
        raise invalid(f"{CONFIG_FILE}.{kind.image_token}", f"{image_token_id} is outside vocab_size={vocab_size}")
    settings = MllmConfig(
        encoder={"name": tower.name, **changed_settings(encoder)},
        connector={"name": kind.connector[0], **connector},
        decoder={"name": family.name, **changed_settings(decoder)},
        vocab_size=vocab_size,
        image_token_id=image_token_id,
        special_tokens=_read_specials(values, file),
        preprocess=preprocess,
        media=media,
        encoding=EncodingConfig(
            max_length_tokens=decoder.max_positions, max_images=max_tiles * EncodingConfig().max_images
        ),
    )
    with torch.device("meta"):
        model = Mllm(settings)
    check_tensors(
        _shapes(model, family, tower, kind.names), {name: (t.shape, is_float(t)) for name, t in tensors.items()}
    )
    _load(model, family, tower, kind.names, file, tensors)
    return model.eval()


def _untied(file: WholeFile, tensors: Mapping[str, Stored]) -> WholeFile:
    """The file, whose own word on ties counts more than its part's where an output layer is stored.

    Older files of wholes say False by default, whatever their text models do, and hold no output layer then.
    """
    if file.tie_word_embeddings is not False or not any(name.endswith("lm_head.weight") for name in tensors):
        return file
    return replace(file, text_config={**file.text_config, "tie_word_embeddings": False})


def _load(
    model: Mllm, family: Family, tower: Tower, names: Names, file: WholeFile, tensors: Mapping[str, Stored]
) -> None:
    """Puts the tensors, which are known to fit, into a model without memory."""
    vision = {n: tensor.read().float() for n, tensor in tensors.items() if n.startswith(names.root + names.vision)}
    model.vision_encoder.load_state_dict(tower.hf.from_hf(file.vision_config, vision)[1], assign=True)
    model.connector.to_empty(device="cpu")
    own = connectors.to_hf(model.connector)
    connectors.load_hf(model.connector, {name: tensors[names.of_connector(name)].read() for name in own})
    slots = decoder_slots(family, model.decoder)
    fill_decoder(model.decoder, slots, lambda name: tensors[names.of_text(name, family)].read())


def _shapes(model: Mllm, family: Family, tower: Tower, names: Names) -> dict[str, Shape]:
    """The published names of all tensors, and their shapes."""
    vision = tower.hf.to_hf(encoder_config(model), model.vision_encoder.state_dict())[1]
    found = {names.root + names.vision + name: tuple(tensor.shape) for name, tensor in vision.items()}
    connector = connectors.to_hf(model.connector)
    found |= {names.of_connector(name): tuple(tensor.shape) for name, tensor in connector.items()}
    return found | {names.of_text(slot.theirs, family): slot.shape for slot in decoder_slots(family, model.decoder)}


def _read_specials(values: Mapping[str, Any], file: WholeFile) -> SpecialTokens:
    """The language model's ids, and those that the whole says anew."""
    return read_specials({**file.text_config, **{key: value for key, value in values.items() if value is not None}})


def _by_published_name(
    tensors: Mapping[str, Stored], family: Family, file: WholeFile, tower: Tower, names: Names
) -> dict[str, Stored]:
    """Tensors by the names that published files have: the text model's whole, each part's behind its prefix."""
    text: dict[str, Stored] = {}
    found: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        part, into = name.removeprefix("model."), found
        if part.startswith("lm_head."):
            into = text
        elif part.startswith(names.text):
            # transformers 5 calls every family's bare model so, and leaves even that out.
            part, into = part.removeprefix(names.text).removeprefix("model."), text
        elif part.startswith(names.vision):
            part = names.vision + tower.prefix + part.removeprefix(names.vision).removeprefix(tower.prefix)
        if into is found:
            part = names.root + part
            if part.endswith("embeddings.position_ids"):
                continue
        if part in into:
            raise DataLossError(f"{into[part].name} and {name} are the same tensor")
        into[part] = tensor
    by_name = by_family_name(family, file.text_config, text)
    return found | {names.of_text(name, family): tensor for name, tensor in by_name.items()}


def write_whole(
    model: Mllm,
    folder: Path,
    kind: Kind,
    own: Mapping[str, Any],
    *,
    special_tokens: SpecialTokens | None,
    max_shard_bytes: int,
) -> None:
    """Writes a new folder that ``AutoModelForImageTextToText.from_pretrained`` opens; ``own`` is the kind's to say.

    A text model whose table transformers' class cannot tie (GPT-2, OPT) is written with an output layer of its own.
    Raises ``InvalidArgumentError`` naming what the kind has no word for, ``AlreadyExistsError`` where the folder holds
    anything.
    """
    require_empty(folder)
    tower = tower_for(model, kind)
    family, text, text_tensors = decoder_parts(model.decoder, special_tokens or model.config.special_tokens)
    if text["tie_word_embeddings"] and not any(rule.theirs == "embed_tokens" for rule in family.rules):
        text["tie_word_embeddings"] = False
        text_tensors["lm_head.weight"] = model.decoder.embed_tokens.weight
    vision, vision_tensors = tower.hf.to_hf(encoder_config(model), model.vision_encoder.state_dict())
    names = kind.names
    tensors = {names.root + names.vision + name: tensor for name, tensor in vision_tensors.items()}
    tensors |= {names.of_connector(name): tensor for name, tensor in connectors.to_hf(model.connector).items()}
    tensors |= {names.of_text(name, family): tensor for name, tensor in text_tensors.items()}
    values = {
        "model_type": kind.model_type,
        "architectures": [kind.architecture],
        "text_config": text,
        "vision_config": vision,
        kind.image_token: model.config.image_token_id,
        **(_projector_values(model, tower) if kind.has_projector else {}),
        "tie_word_embeddings": text["tie_word_embeddings"],
        "dtype": text["dtype"],
        **own,
    }
    write_parts(values, tensors, folder, max_shard_bytes=max_shard_bytes)


def _projector_values(model: Mllm, tower: Tower) -> dict[str, Any]:
    return {
        "image_seq_length": model.image_tokens,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": model.vision_encoder.feature_layer,
        "vision_feature_select_strategy": tower.strategy,
    }


def tower_for(model: Mllm, kind: Kind) -> Tower:
    """The encoder's tower; ``InvalidArgumentError`` names what of encoder and connector no such model has."""
    names, (connector, connector_class) = model.config, kind.connector
    _check_media(names, kind)
    tower = next((tower for tower in kind.towers if type(model.vision_encoder) is tower.encoder), None)
    if tower is None:
        known = ", ".join(tower.name for tower in kind.towers)
        raise invalid("encoder", f"{kind.title} has no {names.encoder['name']!r}, only {known}")
    if type(model.connector) is not connector_class:
        raise invalid("connector", f"{kind.title} has no {names.connector['name']!r}, only {connector}")
    config = encoder_config(model)
    if config.position_size != config.image_size and not kind.resizes:
        raise invalid(
            "encoder.trained_size",
            f"{config.trained_size} is not image_size={config.image_size}: {kind.title} does not resize",
        )
    return tower


def _check_media(config: MllmConfig, kind: Kind) -> None:
    """``InvalidArgumentError`` unless all that the model sees beside single squares are the kind's tiles."""
    if config.media is None:
        return
    if kind.splitter is None:
        raise invalid("media", f"{kind.title} sees images of one square, no tiles and videos, and hears nothing")
    if (name := config.media.splitter["name"]) != kind.splitter:
        raise invalid("media.splitter", f"{kind.title} has no {name!r}, only {kind.splitter}")
    if config.audio is not None:
        raise invalid("audio", f"{kind.title} hears nothing")
    if config.frame_positions is not None:
        raise invalid("frame_positions", f"{kind.title} does not tell frames of a video apart")
    if config.media != MediaSettings(splitter=config.media.splitter):
        raise invalid("media", f"{kind.title} has no word for frames and audio other than the defaults")


def encoder_config(model: Mllm) -> Any:
    """The encoder's settings."""
    return registry.settings("encoder", model.config.encoder)[1]


def is_last(config: VisionTransformerConfig) -> bool:
    """Whether the features are those of the last layer."""
    return layer_number(config.feature_layer, config.num_layers) == config.num_layers
