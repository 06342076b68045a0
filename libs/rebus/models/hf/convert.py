"""Hugging Face language models into ours, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rebus import config as configs
from rebus.errors import AlreadyExistsError, DataLossError, InvalidArgumentError, invalid
from rebus.models.causal_lm import CausalLm, CausalLmConfig, SpecialTokens
from rebus.models.decoders.config import DecoderConfig
from rebus.models.decoders.transformer import Decoder
from rebus.models.hf.expert_families import MIXTRAL, OLMOE
from rebus.models.hf.family import Family
from rebus.models.hf.files import Stored, is_float, read_json, save_shards, stored_tensors
from rebus.models.hf.learned_families import GPT2, OPT
from rebus.models.hf.rotary_families import LLAMA, MISTRAL, QWEN2, QWEN3
from rebus.models.hf.weights import Shape, Slot, fill, slots, whole_names
from rebus.models.io import CONFIG_FILE
from rebus.models.moe.hf import spelled_out

FAMILIES: Mapping[str, Family] = {
    family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, OPT, MIXTRAL, OLMOE)
}
MAX_BYTES = 64 << 30
MAX_SHARD_BYTES = 5 << 30
_SHOWN = 5
# Of anything that ``config.json`` counts: the shapes of any two can be multiplied without overflow.
_MAX_SIZE = 1 << 28


def read_folder(folder: Path, *, max_bytes: int = MAX_BYTES) -> CausalLm:
    """The language model of a Hugging Face folder: float32, in evaluation mode, on the CPU.

    Names and shapes are checked whole before a weight is used. Raises ``InvalidArgumentError`` naming the key of
    ``config.json`` that has no counterpart here, ``DataLossError`` naming tensors that lack, that nobody expects, or
    whose shape is another one, ``NotFoundError`` and ``ResourceExhaustedError`` for missing and for too large files.
    """
    values = read_json(folder / CONFIG_FILE)
    family = family_of(values)
    tensors = stored_tensors(folder, max_bytes=max_bytes)
    by_name = by_family_name(family, values, tensors)
    shapes = {name: (tensor.shape, is_float(tensor)) for name, tensor in by_name.items()}
    return build_model(family, values, shapes, lambda name: by_name[name].read())


def build_model(
    family: Family,
    values: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], bool]],
    read: Callable[[str], Tensor],
) -> CausalLm:
    """The model that ``config.json`` describes, of tensors by name: their shapes, whether they are floats, ``read``."""
    config, vocab_size = read_config(values, family)
    check_depth(config, tensors)
    model = empty_model(family, config, vocab_size, read_specials(values))
    found = decoder_slots(family, model.decoder)
    check_tensors({slot.theirs: slot.shape for slot in found}, tensors)
    fill_decoder(model.decoder, found, read)
    return model.eval()


def fill_decoder(decoder: Decoder, found: list[Slot], read: Callable[[str], Tensor]) -> None:
    """Gives a decoder without memory the weights that ``read`` gives by their names."""
    decoder.load_state_dict(fill(found, _shapes(decoder), read), assign=True)


def check_depth(config: DecoderConfig, tensors: Mapping[str, Any], *, other_layers: int = 0) -> None:
    """Raises ``DataLossError`` before as many layers and experts are made as a hostile file may claim."""
    experts = 1 if config.moe is None else config.moe.num_experts
    layers = max(config.num_layers, other_layers)
    if layers * experts > len(tensors):
        claimed = f"{layers} layers" + (f" of {experts} experts" if config.moe else "")
        raise DataLossError(f"{CONFIG_FILE} claims {claimed}, the weights are {len(tensors)} tensors")


def family_of(values: Mapping[str, Any], *, where: str = CONFIG_FILE) -> Family:
    """The family that ``config.json`` names; ``InvalidArgumentError`` for another, or for quantised weights."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise invalid(f"{where}.model_type", f"unknown {name!r}; known: {', '.join(FAMILIES)}")
    if values.get("quantization_config"):
        raise invalid(f"{where}.quantization_config", "quantised weights are not read")
    return FAMILIES[name]


def read_config(values: Mapping[str, Any], family: Family) -> tuple[DecoderConfig, int]:
    """The decoder's settings and its vocabulary's size."""
    known = {item.name for item in fields(family.file)}
    file = configs.build(family.file, {key: value for key, value in values.items() if key in known}, where=CONFIG_FILE)
    check_sizes(file, where=CONFIG_FILE)
    try:
        config = family.to_config(file)
    except ValueError as error:
        raise InvalidArgumentError(f"{CONFIG_FILE}: {error}") from None
    if file.vocab_size < 1:
        raise invalid(f"{CONFIG_FILE}.vocab_size", f"{file.vocab_size} must be positive")
    return config, file.vocab_size


def check_sizes(file: Any, *, where: str) -> None:
    """Raises ``InvalidArgumentError`` naming a whole number of the dataclass ``file`` that is out of bounds."""
    for item in fields(file):
        value = getattr(file, item.name)
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, int) and not 0 <= size <= _MAX_SIZE:
                raise invalid(f"{where}.{item.name}", f"{size} is not within 0 and {_MAX_SIZE}")


def read_specials(values: Mapping[str, Any]) -> SpecialTokens:
    """The ids with a role that ``config.json`` names."""
    known = {item.name for item in fields(SpecialTokens)}
    found = {key: value for key, value in values.items() if key in known}
    return configs.build(SpecialTokens, found, where=CONFIG_FILE)


def empty_model(family: Family, config: DecoderConfig, vocab_size: int, specials: SpecialTokens) -> CausalLm:
    """The model without memory for its weights, which is to be assigned."""
    settings = {"name": family.name, **changed_settings(config)}
    with torch.device("meta"):
        return CausalLm(CausalLmConfig(decoder=settings, vocab_size=vocab_size, special_tokens=specials))


def changed_settings(config: Any) -> dict[str, Any]:
    """What of a config is not its default, as plain values."""
    own, default = configs.to_plain(config), configs.to_plain(type(config)())
    return {name: value for name, value in own.items() if value != default[name]}


def decoder_slots(family: Family, decoder: Decoder) -> list[Slot]:
    """Where each of the decoder's tensors stands in a file of the family."""
    return slots(family, _shapes(decoder), decoder.config.num_layers)


def _shapes(decoder: Decoder) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}


def check_tensors(expected: Mapping[str, Shape], tensors: Mapping[str, tuple[Shape, bool]]) -> None:
    """Raises ``DataLossError`` naming what lacks, what is unknown and what has another shape, or no floats."""
    problems = [f"lacks {name}" for name in expected if name not in tensors]
    problems += [f"has an unknown {name}" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        shape, is_plain = tensors[name]
        if shape != expected[name]:
            problems.append(f"{name} is {list(shape)}, expected {list(expected[name])}")
        elif not is_plain:
            problems.append(f"{name} holds no floating-point numbers")
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise DataLossError(f"the weights do not fit {CONFIG_FILE}: {'; '.join(sorted(problems)[:_SHOWN])}{more}")


def by_family_name(family: Family, values: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors of a language model by the names of a whole one, without an output layer that repeats the table."""
    whole = whole_names(family, list(tensors))
    by_name = {whole[name]: tensor for name, tensor in tensors.items() if name in whole}
    _drop_repeated_head(values, family, by_name)
    return by_name


def _drop_repeated_head(values: Mapping[str, Any], family: Family, tensors: dict[str, Stored]) -> None:
    """Drops the output layer that some files repeat, if it is indeed the embedding table."""
    head = tensors.get("lm_head.weight")
    stem = next(rule.theirs for rule in family.rules if rule.ours == ("embed_tokens",))
    table = tensors.get(f"{family.prefix}{stem}.weight")
    if head is None or table is None or not read_config(values, family)[0].tie_embeddings:
        return
    if head.shape != table.shape or not torch.equal(head.read(), table.read()):
        raise DataLossError(f"{CONFIG_FILE} ties the embeddings, but lm_head.weight is not {table.name}")
    del tensors["lm_head.weight"]


def write_folder(
    decoder: Decoder,
    folder: Path,
    *,
    special_tokens: SpecialTokens | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Family:
    """Writes a new folder that ``AutoModelForCausalLM.from_pretrained`` opens; returns its family.

    Raises ``InvalidArgumentError`` naming settings that the family has no word for, ``AlreadyExistsError`` where the
    folder holds anything.
    """
    require_empty(folder)
    family, values, tensors = decoder_parts(decoder, special_tokens or SpecialTokens())
    write_parts(values, tensors, folder, max_shard_bytes=max_shard_bytes)
    return family


def decoder_parts(decoder: Decoder, specials: SpecialTokens) -> tuple[Family, dict[str, Any], dict[str, Tensor]]:
    """The decoder's family, what ``config.json`` says of it, and its tensors by the family's names.

    Raises ``InvalidArgumentError`` naming settings and weights that the family has no place for.
    """
    family = _family_for(decoder.config)
    values = write_config(family, decoder.config, decoder.embed_tokens.num_embeddings)
    found = decoder_slots(family, decoder)
    tensors = decoder.state_dict()
    if left := tensors.keys() - {name for slot in found for name in slot.ours}:
        raise invalid("decoder", f"{family.name} has no place for {', '.join(sorted(left)[:_SHOWN])}")
    # Written even where there are none: transformers would put ids of its own in their place.
    values |= configs.to_plain(specials)
    values["dtype"] = str(decoder.embed_tokens.weight.dtype).removeprefix("torch.")
    return family, values, {slot.theirs: slot.join(tensors) for slot in found}


def write_parts(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, *, max_shard_bytes: int
) -> None:
    """Writes ``config.json`` and the weights into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_shards(tensors, folder, max_shard_bytes=max_shard_bytes)
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_config(family: Family, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
    """``config.json`` of a decoder; read back it must give the same settings, else the family cannot hold them."""
    config = _canonical(config)
    file = family.to_file(config, vocab_size)
    defaults = {item.name: item.default for item in fields(file)}
    said = {name: value for name, value in configs.to_plain(file).items() if value is not None or defaults[name]}
    back, _ = read_config(said, family)
    back = _canonical(back)
    if lost := [item.name for item in fields(config) if getattr(config, item.name) != getattr(back, item.name)]:
        found = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost)
        raise invalid("decoder", f"{family.name} in transformers has no word for {found}")
    return {"architectures": [family.architecture], "model_type": family.name, **said}


def _canonical(config: DecoderConfig) -> DecoderConfig:
    """The same decoder, so that two configs that mean the same are equal: the settings of its router spelled out."""
    if config.moe is None:
        return config
    dense = len(config.moe_layers) < config.num_layers  # else nothing has the width of dense blocks
    hidden_width = config.hidden_width if dense else type(config).hidden_width
    return dataclasses.replace(config, moe=spelled_out(config.moe), hidden_width=hidden_width)


def _family_for(config: DecoderConfig) -> Family:
    for family in FAMILIES.values():
        if type(config) is family.config:
            return family
    raise invalid("decoder", f"{type(config).__name__} belongs to none of {', '.join(FAMILIES)}")


def require_empty(folder: Path) -> None:
    """Raises ``AlreadyExistsError`` for a folder that holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExistsError(f"{folder} holds something; name a new folder")


__all__ = ["FAMILIES", "read_folder", "write_folder"]
