"""What lets ``AutoProcessor`` open a model of ours: its ``preprocessor_config.json`` and ``processor_config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebus.errors import invalid
from rebus.models.hf.image_processors import IMAGE_FILE, PROCESSOR_FILE, write_preprocess
from rebus.models.hf.native_images import write_native
from rebus.models.hf.tokenizers import TOKENIZER_FILE, added_tokens
from rebus.models.mllm import Mllm

# Settings by the file's name.
Files = dict[str, dict[str, Any]]
# Tokens that transformers' processor of Idefics2 adds to a tokenizer that lacks them, with ids unknown to the model.
_IDEFICS2_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")


def llava_files(model: Mllm, source: Path) -> Files:
    """Both files of a LLaVA, for the tokenizer of ``source``; the second only where that has a ``tokenizer.json``.

    Raises ``InvalidArgumentError`` where it has no name for the token that stands for images.
    """
    files = {IMAGE_FILE: write_preprocess(model.config.preprocess)}
    if not (source / TOKENIZER_FILE).is_file():
        return files
    prefix = model.vision_encoder.num_prefix_tokens
    files[PROCESSOR_FILE] = {
        "processor_class": "LlavaProcessor",
        "image_token": _token(source, model.config.image_token_id),
        "patch_size": model.vision_encoder.patch_size,
        "num_additional_image_tokens": prefix,
        "vision_feature_select_strategy": "default" if prefix else "full",
    }
    return files


def idefics2_files(model: Mllm, source: Path) -> Files:
    """Both files of an Idefics2, for the tokenizer of ``source``; the second only where that has all tokens it needs.

    Raises ``InvalidArgumentError`` where the token that stands for images has another name than ``<image>``.
    """
    files = {IMAGE_FILE: write_native(model.config.preprocess)}
    if not (source / TOKENIZER_FILE).is_file():
        return files
    if (token := _token(source, model.config.image_token_id)) != "<image>":
        raise invalid("image_token_id", f"{model.config.image_token_id} is {token!r}, which Idefics2 calls <image>")
    if set(_IDEFICS2_TOKENS) <= added_tokens(source).keys():
        files[IMAGE_FILE]["processor_class"] = "Idefics2Processor"
        files[PROCESSOR_FILE] = {"processor_class": "Idefics2Processor", "image_seq_len": model.image_tokens}
    return files


def write_files(files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Writes each as JSON."""
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _token(folder: Path, token_id: int) -> str:
    for name, number in added_tokens(folder).items():
        if number == token_id:
            return name
    raise invalid("image_token_id", f"{token_id} is no added token of tokenizer.json, which is to name it")
