"""Hugging Face folders into model folders of ours, and back: language models and multimodal ones, as configs say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rebus.errors import FailedPreconditionError
from rebus.models.card import describe, of_decoder
from rebus.models.causal_lm import CausalLm, SpecialTokens
from rebus.models.decoders.transformer import Decoder
from rebus.models.hf.convert import MAX_BYTES, MAX_SHARD_BYTES, read_folder, require_empty, write_folder
from rebus.models.hf.files import read_json
from rebus.models.hf.formats import FORMATS, format_of
from rebus.models.hf.processors import Files, write_files
from rebus.models.hf.tokenizers import complete_tokenizer, copy_tokenizer, tokenizer_specials
from rebus.models.io import CONFIG_FILE, load_model, save_model
from rebus.models.mllm import Mllm

# What hubs show of a folder.
README_FILE = "README.md"


def import_folder(source: Path, target: Path, *, max_bytes: int = MAX_BYTES) -> CausalLm | Mllm:
    """Makes the new model folder ``target`` of a Hugging Face folder, its tokenizer files with it.

    Raises what ``read_folder`` or the format's ``read`` raises, and ``AlreadyExistsError`` where ``target`` holds
    anything.
    """
    require_empty(target)
    model_type = read_json(source / CONFIG_FILE).get("model_type")
    multimodal = FORMATS.get(model_type) if isinstance(model_type, str) else None
    model = (multimodal.read if multimodal else read_folder)(source, max_bytes=max_bytes)
    save_model(model, target)
    copy_tokenizer(source, target)
    return model


def export_folder(
    source: Path, target: Path, *, decoder_only: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES
) -> str:
    """Writes the model folder ``source`` as the new folder ``target``, its tokenizer files with it.

    An ``Mllm`` becomes what ``format_of`` says, or with ``decoder_only`` a language model; its card is the folder's
    ``README.md``. Returns the class that opens it. Raises what ``load_model``, ``write_folder`` and the ``write`` of a
    format raise.
    """
    model = load_model(source)
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, Decoder) or not isinstance(model, CausalLm | Mllm):
        raise FailedPreconditionError(f"a {type(model).__name__} has no decoder to export")
    specials = model.config.special_tokens
    if specials == SpecialTokens():
        specials = tokenizer_specials(source)
    processor: Files = {}
    if isinstance(model, Mllm) and not decoder_only:
        multimodal = format_of(model)
        multimodal.check(model)  # before its processor is described
        processor = multimodal.processor(model, source)
        multimodal.write(model, target, special_tokens=specials, max_shard_bytes=max_shard_bytes)
        architecture, card = multimodal.architecture, describe(model)
    else:
        family = write_folder(decoder, target, special_tokens=specials, max_shard_bytes=max_shard_bytes)
        architecture, card = family.architecture, of_decoder(decoder, family.name)
    copy_tokenizer(source, target)
    complete_tokenizer(target)
    write_files(processor, target)
    (target / README_FILE).write_text(replace(card, library="transformers").markdown(), encoding="utf-8")
    return architecture


__all__ = ["export_folder", "import_folder"]
