"""Hugging Face folders into model folders of ours, and back: language models and LLaVA, by what their config says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rebus.errors import FailedPreconditionError
from rebus.models.card import describe, of_decoder
from rebus.models.causal_lm import CausalLm, SpecialTokens
from rebus.models.decoders.transformer import Decoder
from rebus.models.hf.convert import MAX_BYTES, MAX_SHARD_BYTES, read_folder, require_empty, write_folder
from rebus.models.hf.files import read_json
from rebus.models.hf.llava import ARCHITECTURE, MODEL_TYPE, read_llava, tower_of, write_llava
from rebus.models.hf.processors import processor_files, write_files
from rebus.models.hf.tokenizers import complete_tokenizer, copy_tokenizer, tokenizer_specials
from rebus.models.io import CONFIG_FILE, load_model, save_model
from rebus.models.mllm import Mllm

# What hubs show of a folder.
README_FILE = "README.md"


def import_folder(source: Path, target: Path, *, max_bytes: int = MAX_BYTES) -> CausalLm | Mllm:
    """Makes the new model folder ``target`` of a Hugging Face folder, its tokenizer files with it.

    Raises what ``read_folder`` and ``read_llava`` raise, and ``AlreadyExistsError`` where ``target`` holds anything.
    """
    require_empty(target)
    read = read_llava if read_json(source / CONFIG_FILE).get("model_type") == MODEL_TYPE else read_folder
    model = read(source, max_bytes=max_bytes)
    save_model(model, target)
    copy_tokenizer(source, target)
    return model


def export_folder(
    source: Path, target: Path, *, decoder_only: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES
) -> str:
    """Writes the model folder ``source`` as the new folder ``target``, its tokenizer files with it.

    An ``Mllm`` becomes a LLaVA, or with ``decoder_only`` a language model; its card is the folder's ``README.md``.
    Returns the class that opens it. Raises what ``load_model``, ``write_folder`` and ``write_llava`` raise.
    """
    model = load_model(source)
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, Decoder) or not isinstance(model, CausalLm | Mllm):
        raise FailedPreconditionError(f"a {type(model).__name__} has no decoder to export")
    if isinstance(model, Mllm) and model.config.cross_attention is not None:
        raise FailedPreconditionError("neither a LLaVA nor a language model has cross_attention to images")
    specials = model.config.special_tokens
    if specials == SpecialTokens():
        specials = tokenizer_specials(source)
    processor: dict[str, dict[str, Any]] = {}
    if isinstance(model, Mllm) and not decoder_only:
        tower_of(model)  # before its processor is described
        processor = processor_files(model, source)
        write_llava(model, target, special_tokens=specials, max_shard_bytes=max_shard_bytes)
        architecture, card = ARCHITECTURE, describe(model)
    else:
        family = write_folder(decoder, target, special_tokens=specials, max_shard_bytes=max_shard_bytes)
        architecture, card = family.architecture, of_decoder(decoder, family.name)
    copy_tokenizer(source, target)
    complete_tokenizer(target)
    write_files(processor, target)
    (target / README_FILE).write_text(replace(card, library="transformers").markdown(), encoding="utf-8")
    return architecture


__all__ = ["export_folder", "import_folder"]
