"""The tokenizer in a GGUF file's metadata as ``tokenizer.json`` and ``tokenizer_config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from rebus.errors import DataLossError, invalid

_CONTROL = 3  # token type of what marks up a text and is never part of it
# How a text is cut before its merges, by llama.cpp's names.
_CUTS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The two files by name.

    Raises ``InvalidArgumentError`` for a tokenizer that is not byte-level BPE or cuts texts in an unknown way, and
    ``DataLossError`` for vocabularies and merges that do not fit each other.
    """
    if (kind := metadata.get("tokenizer.ggml.model")) != "gpt2":
        raise invalid("tokenizer.ggml.model", f"expected gpt2, found {kind!r}")
    if (cut := metadata.get("tokenizer.ggml.pre")) not in _CUTS:
        raise invalid("tokenizer.ggml.pre", f"unknown {cut!r}; known: {', '.join(_CUTS)}")
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])
    backend = Tokenizer(_merging(tokens, metadata.get("tokenizer.ggml.merges", [])))
    backend.pre_tokenizer = _CUTS[cut]()
    backend.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type", ())
    control = [token for token, kind in zip(tokens, types, strict=False) if kind == _CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **_named(metadata, tokens)}
    return {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json.dumps(values, indent=2) + "\n"}


def _merging(tokens: list[str], merges: list[str]) -> models.BPE:
    try:
        pairs = [(first, second) for first, second in (merge.split(" ", 1) for merge in merges)]
        return models.BPE({token: at for at, token in enumerate(tokens)}, pairs)
    except Exception as error:  # the binding raises bare Exception for a merge of unknown tokens
        raise DataLossError(f"tokenizer.ggml.merges: {error}") from None


def _named(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    """Special tokens by role, and the chat template."""
    named = {}
    for theirs, role in _ROLES.items():
        at = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if at is not None and 0 <= at < len(tokens):
            named[role] = tokens[at]
    if template := metadata.get("tokenizer.chat_template"):
        named["chat_template"] = template
    return named
