"""What lets ``AutoProcessor`` open a whole model of ours: how its images are processed, and joined with the text."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rebus.errors import invalid
from rebus.models.hf.any_resolution_images import write_any_resolution
from rebus.models.hf.image_processors import IMAGE_FILE, PROCESSOR_FILE, write_preprocess
from rebus.models.hf.llava_next import LLAVA_NEXT, pinpoints_of
from rebus.models.hf.native_images import write_native
from rebus.models.hf.tiles import write_tiles
from rebus.models.hf.tokenizers import TOKENIZER_FILE, added_tokens
from rebus.models.mllm import Mllm

Files = dict[str, dict[str, Any]]
# Tokens that transformers' processor of Idefics2 adds to a tokenizer that lacks them, with ids unknown to the model.
_IDEFICS2_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")


def llava_files(model: Mllm, image_token: str | None, added: Collection[str] = ()) -> Files:
    """A LLaVA's files by name; the second only where ``image_token`` is known."""
    return _llava_files(model, image_token, write_preprocess(model.config.preprocess))


def llava_next_files(model: Mllm, image_token: str | None, added: Collection[str] = ()) -> Files:
    """A LLaVA-NeXT's files by name; the second only where ``image_token`` is known."""
    image = write_any_resolution(model.config.preprocess, pinpoints_of(model))
    return _llava_files(model, image_token, {"processor_class": LLAVA_NEXT.processor, **image})


def _llava_files(model: Mllm, image_token: str | None, image: dict[str, Any]) -> Files:
    files = {IMAGE_FILE: image}
    if image_token is None:
        return files
    prefix = model.vision_encoder.num_prefix_tokens
    files[PROCESSOR_FILE] = {
        "processor_class": image["processor_class"],
        "image_token": image_token,
        "patch_size": model.vision_encoder.patch_size,
        "num_additional_image_tokens": prefix,
        "vision_feature_select_strategy": "default" if prefix else "full",
    }
    return files


def internvl_files(model: Mllm, image_token: str | None, added: Collection[str] = ()) -> Files:
    """An InternVL's files by name; the last only where ``image_token`` is known."""
    files = write_tiles(model.config.preprocess, model.config.media)
    if image_token is None:
        return files
    return files | {PROCESSOR_FILE: {"processor_class": "InternVLProcessor", "image_seq_length": model.image_tokens}}


def internvl_tokens(image_token: str) -> dict[str, str]:
    """How ``InternVLProcessor`` calls the tokens of images, for a tokenizer that marks neither their start nor end.

    The processor puts frames in the place of a video's token before the tokenizer reads it; it must be a text that
    no prompt holds otherwise.
    """
    names = {"start_image_token": "", "end_image_token": "", "context_image_token": image_token}
    return names | {"video_token": "<video>"}


def idefics2_files(model: Mllm, image_token: str | None, added: Collection[str]) -> Files:
    """An Idefics2's files by name; the last only where the tokenizer has ``added`` all tokens that it asks for.

    Raises ``InvalidArgumentError`` where the token that stands for images has another name than ``<image>``.
    """
    files = {IMAGE_FILE: write_native(model.config.preprocess, model.config.media)}
    if image_token not in (None, "<image>"):
        raise invalid(
            "image_token_id", f"{model.config.image_token_id} is {image_token!r}, which Idefics2 calls <image>"
        )
    if set(_IDEFICS2_TOKENS) <= set(added):
        files[IMAGE_FILE]["processor_class"] = "Idefics2Processor"
        files[PROCESSOR_FILE] = {"processor_class": "Idefics2Processor", "image_seq_len": model.image_tokens}
    return files


def image_token(model: Mllm, source: Path) -> str | None:
    """The token that stands for images in ``tokenizer.json`` of ``source``; None where there is no such file.

    Raises ``InvalidArgumentError`` where the file has no name for it.
    """
    if not (source / TOKENIZER_FILE).is_file():
        return None
    token_id = model.config.image_token_id
    for token, number in added_tokens(source).items():
        if number == token_id:
            return token
    raise invalid("image_token_id", f"{token_id} is no added token of tokenizer.json, which is to name it")


def write_files(files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Writes each as JSON."""
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
