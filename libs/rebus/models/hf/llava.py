"""LLaVA folders into ``Mllm`` and back: a CLIP or SigLIP tower, an MLP, and a decoder of any of the families."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rebus.errors import invalid
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors.mlp import MlpConnector
from rebus.models.encoders.clip import ClipVision
from rebus.models.encoders.hf import clip, siglip
from rebus.models.encoders.siglip import SiglipVision
from rebus.models.hf.convert import MAX_BYTES, MAX_SHARD_BYTES
from rebus.models.hf.files import read_json
from rebus.models.hf.image_processors import read_preprocess, write_preprocess
from rebus.models.hf.whole import (
    Kind,
    Tower,
    WholeFile,
    encoder_config,
    find_tower,
    is_last,
    read_encoder,
    read_file,
    read_whole,
    tower_for,
    write_whole,
)
from rebus.models.io import CONFIG_FILE
from rebus.models.mllm import Mllm

LLAVA = Kind(
    title="a LLaVA",
    model_type="llava",
    architecture="LlavaForConditionalGeneration",
    processor="LlavaProcessor",
    towers=(
        Tower("clip", "clip_vision_model", ClipVision, clip, "default", "vision_model."),
        Tower("siglip", "siglip_vision_model", SiglipVision, siglip, "full", "vision_model."),
    ),
    text_model_type="llama",
    connector=("mlp", MlpConnector),
    image_token="image_token_index",
)


@dataclass(frozen=True, kw_only=True)
class LlavaFile(WholeFile):
    """``LlavaConfig`` of transformers, with its defaults."""

    image_token_index: int = 32000
    multimodal_projector_bias: bool = True


def read_llava(folder: Path, *, max_bytes: int = MAX_BYTES) -> Mllm:
    """The LLaVA of a Hugging Face folder: float32, in evaluation mode, on the CPU.

    Names, shapes and kinds are checked whole before a weight is used. Raises what ``convert.read_folder`` raises, for
    the same reasons, and what ``read_preprocess`` raises.
    """
    values = read_json(folder / CONFIG_FILE)
    file = read_file(values, LlavaFile, LLAVA)
    check_projector(file)
    tower = find_tower(file, LLAVA)
    encoder = encoder_of(file, tower)
    preprocess = read_preprocess(folder, image_size=encoder.image_size)
    return read_whole(
        folder,
        values,
        file,
        LLAVA,
        tower=tower,
        encoder=encoder,
        connector={},
        preprocess=preprocess,
        max_bytes=max_bytes,
    )


def check_projector(file: LlavaFile) -> None:
    """Raises ``InvalidArgumentError`` for a projector that is not ours."""
    if not file.multimodal_projector_bias:
        raise invalid(f"{CONFIG_FILE}.multimodal_projector_bias", "False is not supported, only True")


def encoder_of(file: LlavaFile, tower: Tower) -> Any:
    """The encoder's settings."""
    encoder = read_encoder(file, tower)
    # Hidden states are what the last block returns.
    return replace(encoder, feature_norm=False) if tower.name == "siglip" and is_last(encoder) else encoder


def write_llava(
    model: Mllm,
    folder: Path,
    *,
    special_tokens: SpecialTokens | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a new folder that ``AutoModelForImageTextToText.from_pretrained`` opens; raises what ``write_whole`` does.

    A text model whose table transformers' LLaVA cannot tie (GPT-2, OPT) is written with an output layer of its own.
    """
    check_llava(model)
    write_preprocess(model.config.preprocess)
    own = {"multimodal_projector_bias": True}
    write_whole(model, folder, LLAVA, own, special_tokens=special_tokens, max_shard_bytes=max_shard_bytes)


def check_llava(model: Mllm, kind: Kind = LLAVA) -> None:
    """Raises ``InvalidArgumentError`` naming what of encoder and connector the kind has no word for."""
    tower_for(model, kind)
    connector = model.connector
    if connector.fc1.out_features != connector.fc2.out_features:
        raise invalid(
            "connector.hidden_width", f"{connector.fc1.out_features} is not the decoder's {connector.fc2.out_features}"
        )
    config = encoder_config(model)
    if getattr(config, "feature_norm", False) and is_last(config):
        raise invalid("encoder.feature_norm", f"{kind.title} reads the last layer before its norm: feature_norm=False")
