"""What lets ``AutoProcessor`` open a whole model of ours: how its images are processed, and joined with the text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebus.errors import invalid
from rebus.models.hf.files import read_json
from rebus.models.hf.image_processors import IMAGE_FILE, PROCESSOR_FILE, write_preprocess
from rebus.models.hf.tiles import write_tile
from rebus.models.mllm import Mllm

Files = dict[str, dict[str, Any]]


def llava_files(model: Mllm, image_token: str | None) -> Files:
    """A LLaVA's files by name; the second only where ``image_token`` is known."""
    files = {IMAGE_FILE: write_preprocess(model.config.preprocess)}
    if image_token is None:
        return files
    prefix = model.vision_encoder.num_prefix_tokens
    files[PROCESSOR_FILE] = {
        "processor_class": "LlavaProcessor",
        "image_token": image_token,
        "patch_size": model.vision_encoder.patch_size,
        "num_additional_image_tokens": prefix,
        "vision_feature_select_strategy": "default" if prefix else "full",
    }
    return files


def internvl_files(model: Mllm, image_token: str | None) -> Files:
    """An InternVL's files by name; the last only where ``image_token`` is known."""
    files = write_tile(model.config.preprocess)
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


def image_token(model: Mllm, source: Path) -> str | None:
    """The token that stands for images in ``tokenizer.json`` of ``source``; None where there is no such file.

    Raises ``InvalidArgumentError`` where the file has no name for it.
    """
    if not (source / "tokenizer.json").is_file():
        return None
    token_id = model.config.image_token_id
    for item in read_json(source / "tokenizer.json").get("added_tokens", []):
        if item["id"] == token_id:
            return item["content"]
    raise invalid("image_token_id", f"{token_id} is no added token of tokenizer.json, which is to name it")


def write_files(files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Writes each as JSON."""
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
