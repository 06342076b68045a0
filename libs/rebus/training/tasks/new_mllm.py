"""The ``Mllm`` that a recipe describes: new, or made of parts of other models, with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from rebus import registry
from rebus.data.encoding import EncodingConfig
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.preprocess.media import MediaSettings
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.models.audio import AudioConfig
from rebus.models.encoders.base import Pretrained
from rebus.models.encoders.video import FramePositionsConfig
from rebus.models.gated_cross_attention import GatedCrossAttentionConfig, cross_attentions
from rebus.models.mllm import Mllm, MllmConfig
from rebus.registry import Spec
from rebus.training.checkpoints import MODEL_FOLDER
from rebus.training.task import TaskContext
from rebus.training.tasks.mllm_start import Starts

_READ_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class NewMllmConfig:
    """The parts of the model, and how its inputs are prepared."""

    encoder: Spec = registry.component("encoder", "vit")
    connector: Spec = registry.component("connector", "mlp")
    decoder: Spec = registry.component("decoder", "llama")
    # Images are read by layers put into the decoder, before every n-th, and not in the text (Flamingo).
    cross_attention: GatedCrossAttentionConfig | None = None
    # The tokenizer is trained on the recipe's data, unless the decoder comes from a model that has one.
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    preprocess: ImageProcessorConfig = field(default_factory=ImageProcessorConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    # For tiles, videos and sound; see ``MllmConfig``.
    media: MediaSettings | None = None
    audio: AudioConfig | None = None
    frame_positions: FramePositionsConfig | None = None


C = TypeVar("C", bound=NewMllmConfig)


def new_mllm(config: C, context: TaskContext) -> tuple[Mllm, Tokenizer, C]:
    """The model with its initial weights, its tokenizer, and ``config`` with the settings of parts that were taken.

    An encoder with published weights starts from them. On resume the tokenizer is the checkpoint's, and the weights
    are for the loop to load.
    """
    starts = Starts(context.start_from)
    config = starts.settings(config)
    if context.resume_from is not None:
        tokenizer = Tokenizer.load(context.resume_from / MODEL_FOLDER)
    elif starts.tokenizer is not None:
        tokenizer = starts.tokenizer
    else:
        context.progress("training the tokenizer")
        tokenizer = Tokenizer.train(_texts(context, config.tokenizer.max_texts), config.tokenizer)
    torch.manual_seed(context.seed)
    model = Mllm(
        MllmConfig(
            encoder=config.encoder,
            connector=config.connector,
            decoder=config.decoder,
            vocab_size=tokenizer.vocab_size,
            image_token_id=tokenizer.image_token_id,
            preprocess=config.preprocess,
            encoding=config.encoding,
            media=config.media,
            audio=config.audio,
            frame_positions=config.frame_positions,
            cross_attention=config.cross_attention,
        )
    )
    taken = set(model.vision_encoder.modules()) if "vision_encoder" in context.start_from else set()
    for part in model.modules():
        if isinstance(part, Pretrained) and part not in taken:
            part.load_pretrained()
    starts.fill(model)
    return model, tokenizer, config


def mllm_parts(model: Mllm) -> dict[str, nn.Module]:
    """What stages may train. ``embeddings`` (the word table) and ``cross_attention`` are parts of ``decoder`` too."""
    added = cross_attentions(model.decoder.layers)
    optional = {"audio": model.audio, "frame_positions": model.frame_positions}
    return {
        "vision_encoder": model.vision_encoder,
        "connector": model.connector,
        "decoder": model.decoder,
        "embeddings": model.decoder.embed_tokens,
        **({"cross_attention": added} if len(added) else {}),
        **{name: part for name, part in optional.items() if part is not None},
    }


def _texts(context: TaskContext, limit: int) -> Iterator[str]:
    """Up to ``limit`` texts, an equal part of each source, in order of its rows."""
    for source in context.sources.values():
        left = limit // len(context.sources)
        for start in range(0, len(source), _READ_ROWS):
            samples = source.take(range(start, min(start + _READ_ROWS, len(source))))
            for text in (segment.text for sample in samples for segment in sample.segments if segment.text):
                if left == 0:
                    break
                left -= 1
                yield text
            if left == 0:
                break
