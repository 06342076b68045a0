"""What tells one Hugging Face family from another: its ``config.json`` and the names of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rebus.models.decoders.config import DecoderConfig


@dataclass(frozen=True)
class Rule:
    """One module of theirs and those of ours that it holds, by the stems of their names.

    ``transposed`` weights are ``[in, out]``, as GPT-2 has them. Several of ours lie one after another along the output.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class ExpertRule:
    """One matrix of each of their experts, and ours, which holds it stacked: one of ``parts`` along the output."""

    # A whole name, with ``{expert}`` in it.
    theirs: str
    ours: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of language models as transformers keeps it."""

    # ``model_type`` in ``config.json``, and the name of our decoder.
    name: str
    # The class of transformers, for ``AutoModelForCausalLM``.
    architecture: str
    # Dataclass of our decoder's settings.
    config: type[DecoderConfig]
    # Dataclass of what ``config.json`` says, with transformers' defaults; other keys do not bear on the numbers.
    file: type
    # Settings of our decoder from an instance of ``file``, and back.
    to_config: Callable[[Any], DecoderConfig]
    to_file: Callable[[Any, int], Any]
    # What their names start with in a whole model; published files of the bare model lack it.
    prefix: str
    # The list of layers, without the prefix.
    layers: str
    # Modules of a layer, and modules outside of layers; all without their prefixes.
    layer_rules: tuple[Rule, ...]
    rules: tuple[Rule, ...]
    # Matrices of a layer's experts.
    expert_rules: tuple[ExpertRule, ...] = ()
    # Ends of names that some files hold beside the weights: buffers that are computed anew.
    ignored: tuple[str, ...] = ()
