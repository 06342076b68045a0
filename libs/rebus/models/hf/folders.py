"""Hugging Face folders into model folders of ours, and back: language models and whole ones, as their config says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rebus.errors import FailedPreconditionError
from rebus.models.card import describe, of_decoder
from rebus.models.causal_lm import CausalLm, SpecialTokens
from rebus.models.decoders.transformer import Decoder
from rebus.models.hf.convert import MAX_BYTES, MAX_SHARD_BYTES, read_folder, require_empty, write_folder
from rebus.models.hf.files import read_json
from rebus.models.hf.idefics2 import IDEFICS2, check_idefics2, read_idefics2, write_idefics2
from rebus.models.hf.internvl import INTERNVL, check_internvl, read_internvl, write_internvl
from rebus.models.hf.llava import LLAVA, check_llava, read_llava, write_llava
from rebus.models.hf.llava_next import LLAVA_NEXT, check_llava_next, read_llava_next, write_llava_next
from rebus.models.hf.processors import (
    Files,
    idefics2_files,
    image_token,
    internvl_files,
    internvl_tokens,
    llava_files,
    llava_next_files,
    write_files,
)
from rebus.models.hf.tokenizers import added_tokens, complete_tokenizer, copy_tokenizer, tokenizer_specials
from rebus.models.hf.whole import Kind
from rebus.models.io import CONFIG_FILE, load_model, save_model
from rebus.models.mllm import Mllm

# What hubs show of a folder.
README_FILE = "README.md"


@dataclass(frozen=True)
class Format:
    """What folders of one kind of whole models are read and written with."""

    kind: Kind
    read: Callable[..., Mllm]
    # Raises where the kind has no word for the model's parts.
    check: Callable[[Mllm], None]
    write: Callable[..., None]
    # The processor's files, and names of special tokens, by the added tokens and by the one that stands for images.
    files: Callable[[Mllm, str | None, Collection[str]], Files]
    tokens: Callable[[str], Mapping[str, str]]


_FORMATS = (
    Format(LLAVA, read_llava, check_llava, write_llava, llava_files, lambda token: {}),
    Format(LLAVA_NEXT, read_llava_next, check_llava_next, write_llava_next, llava_next_files, lambda token: {}),
    Format(INTERNVL, read_internvl, check_internvl, write_internvl, internvl_files, internvl_tokens),
    Format(IDEFICS2, read_idefics2, check_idefics2, write_idefics2, idefics2_files, lambda token: {}),
)


def import_folder(source: Path, target: Path, *, max_bytes: int = MAX_BYTES) -> CausalLm | Mllm:
    """Makes the new model folder ``target`` of a Hugging Face folder, its tokenizer files with it.

    Raises what ``read_folder`` or the format's ``read`` raises, and ``AlreadyExistsError`` where ``target`` holds
    anything.
    """
    require_empty(target)
    model_type = read_json(source / CONFIG_FILE).get("model_type")
    reads: dict[Any, Callable[..., CausalLm | Mllm]] = {form.kind.model_type: form.read for form in _FORMATS}
    model = reads.get(model_type, read_folder)(source, max_bytes=max_bytes)
    save_model(model, target)
    copy_tokenizer(source, target)
    return model


def export_folder(
    source: Path, target: Path, *, decoder_only: bool = False, max_shard_bytes: int = MAX_SHARD_BYTES
) -> str:
    """Writes the model folder ``source`` as the new folder ``target``, its tokenizer files with it.

    An ``Mllm`` becomes what its encoder and connector make it, or with ``decoder_only`` a language model; its card is
    the folder's ``README.md``. Returns the class that opens it. Raises what ``load_model``, ``write_folder`` and the
    format's ``check``, ``files`` and ``write`` raise.
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
    processor: Files = {}
    tokens: Mapping[str, str] = {}
    if isinstance(model, Mllm) and not decoder_only:
        form = _format_of(model)
        form.check(model)  # before its processor is described
        token = image_token(model, source)
        processor, tokens = form.files(model, token, added_tokens(source)), {} if token is None else form.tokens(token)
        form.write(model, target, special_tokens=specials, max_shard_bytes=max_shard_bytes)
        architecture, card = form.kind.architecture, describe(model)
    else:
        family = write_folder(decoder, target, special_tokens=specials, max_shard_bytes=max_shard_bytes)
        architecture, card = family.architecture, of_decoder(decoder, family.name)
    copy_tokenizer(source, target)
    complete_tokenizer(target, tokens)
    write_files(processor, target)
    (target / README_FILE).write_text(replace(card, library="transformers").markdown(), encoding="utf-8")
    return architecture


def _format_of(model: Mllm) -> Format:
    """The first that has the model's encoder and connector, else its encoder; else the first, to say what it has."""

    def fits(kind: Kind) -> tuple[bool, bool]:
        has_encoder = type(model.vision_encoder) in [tower.encoder for tower in kind.towers]
        return has_encoder, type(model.connector) is kind.connector[1]

    return max(_FORMATS, key=lambda form: fits(form.kind) if fits(form.kind)[0] else (False, False))


__all__ = ["export_folder", "import_folder"]
