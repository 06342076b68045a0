"""Tokenizer files that travel with a model: copied as they are, never interpreted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebus.data.tokenizer import BOS, EOS, PAD
from rebus.errors import ResourceExhaustedError
from rebus.models.causal_lm import SpecialTokens
from rebus.models.hf.files import read_json

TOKENIZER_FILE = "tokenizer.json"
# Vocabulary and merges, special tokens, the chat template, defaults of generation. None of them holds code or pickles.
FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
MAX_BYTES = 256 << 20
# Roles that transformers knows -> the special tokens of a Rebus tokenizer.
_ROLES = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copies what ``source`` has of ``FILES``; returns the names. Raises ``ResourceExhaustedError`` for huge ones."""
    found = [name for name in FILES if (source / name).is_file()]
    for name in found:
        if (size := (source / name).stat().st_size) > MAX_BYTES:
            raise ResourceExhaustedError(f"{name} is {size} bytes, more than {MAX_BYTES}")
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def complete_tokenizer(folder: Path, names: Mapping[str, str] | None = None) -> None:
    """Lets ``AutoTokenizer`` open a folder whose ``tokenizer.json`` stands alone, as Rebus writes it.

    ``names`` are attributes that its processor asks of the tokenizer, and the tokens that they are.
    """
    if (folder / TOKENIZER_FILE).is_file() and not (folder / "tokenizer_config.json").is_file():
        values: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **_named_specials(folder)}
        if names:
            values["extra_special_tokens"] = dict(names)
        (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def tokenizer_specials(folder: Path) -> SpecialTokens:
    """Ids of the special tokens in ``tokenizer.json``, as Rebus writes it."""
    ids = added_tokens(folder)
    return SpecialTokens(**{f"{role}_id": ids[token] for role, token in _ROLES.items() if token in ids})


def _named_specials(folder: Path) -> dict[str, str]:
    ids = added_tokens(folder)
    return {role: token for role, token in _ROLES.items() if token in ids}


def added_tokens(folder: Path) -> dict[str, int]:
    """Ids of the tokens that ``tokenizer.json`` adds to its vocabulary, by name; none where there is no such file."""
    path = folder / TOKENIZER_FILE
    added = read_json(path).get("added_tokens", []) if path.is_file() else []
    return {item["content"]: item["id"] for item in added}
