"""What lets ``AutoProcessor`` open a LLaVA of ours: its ``preprocessor_config.json`` and ``processor_config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebus.errors import invalid
from rebus.models.hf.files import read_json
from rebus.models.hf.image_processors import IMAGE_FILE, PROCESSOR_FILE, write_preprocess
from rebus.models.mllm import Mllm


def processor_files(model: Mllm, source: Path) -> dict[str, dict[str, Any]]:
    """Both files by name, for the tokenizer of ``source``; the second only where that has a ``tokenizer.json``.

    Raises ``InvalidArgumentError`` where it has no name for the token that stands for images.
    """
    files = {IMAGE_FILE: write_preprocess(model.config.preprocess)}
    if not (source / "tokenizer.json").is_file():
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


def write_files(files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Writes each as JSON."""
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _token(folder: Path, token_id: int) -> str:
    for item in read_json(folder / "tokenizer.json").get("added_tokens", []):
        if item["id"] == token_id:
            return item["content"]
    raise invalid("image_token_id", f"{token_id} is no added token of tokenizer.json, which is to name it")
