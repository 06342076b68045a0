"""The kinds of multimodal models of transformers that are read and written here, by what ``config.json`` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.models.connectors.perceiver_resampler import PerceiverResampler
from rebus.models.hf import idefics2, llava
from rebus.models.hf.idefics2 import check_idefics2, read_idefics2, write_idefics2
from rebus.models.hf.llava import read_llava, tower_of, write_llava
from rebus.models.hf.processors import Files, idefics2_files, llava_files
from rebus.models.mllm import Mllm


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind."""

    model_type: str
    # The class of transformers, for ``AutoModelForImageTextToText``.
    architecture: str
    read: Callable[..., Mllm]
    # Raises ``InvalidArgumentError`` naming what of a model the kind has no word for.
    check: Callable[[Mllm], Any]
    write: Callable[..., None]
    # The image processor's and the processor's files, for the tokenizer of a folder.
    processor: Callable[[Mllm, Path], Files]


LLAVA = Format(
    model_type=llava.MODEL_TYPE,
    architecture=llava.ARCHITECTURE,
    read=read_llava,
    check=tower_of,
    write=write_llava,
    processor=llava_files,
)
IDEFICS2 = Format(
    model_type=idefics2.MODEL_TYPE,
    architecture=idefics2.ARCHITECTURE,
    read=read_idefics2,
    check=check_idefics2,
    write=write_idefics2,
    processor=idefics2_files,
)
FORMATS = {item.model_type: item for item in (LLAVA, IDEFICS2)}


def format_of(model: Mllm) -> Format:
    """The kind that has the model's connector; LLaVA for any other, to say what it lacks."""
    return IDEFICS2 if isinstance(model.connector, PerceiverResampler) else LLAVA
