"""A multimodal model small enough for unit tests, its weights drawn wide so that its answers vary."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from rebus.data.encoding import Encoder, EncodingConfig
from rebus.data.preprocess import ImageProcessor, ImageProcessorConfig
from rebus.data.sample import Segment
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.generation.requests import Prompt
from rebus.models.mllm import Mllm, MllmConfig

TEXTS = ["is there a red cube?", "yes", "no", "how many small spheres are there?", "naïve café", "日本 🙂 emoji"]

PREPROCESS = ImageProcessorConfig(image_size=16)


def png(color: tuple[int, int, int], size: int = 16) -> bytes:
    """A plain square image, with one dark pixel so that it is not constant."""
    pixels = np.full((size, size, 3), color, dtype=np.uint8)
    pixels[1, 2] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, TokenizerConfig(vocab_size=320))


def tiny_model(tokenizer: Tokenizer, seed: int = 0) -> Mllm:
    torch.manual_seed(seed)
    vit = {"name": "vit", "image_size": 16, "patch_size": 8, "width": 16, "num_layers": 1, "num_heads": 2}
    llama = {"name": "llama", "width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_width": 48}
    config = MllmConfig(
        encoder={**vit, "hidden_width": 32},
        decoder=llama,
        vocab_size=tokenizer.vocab_size,
        image_token_id=tokenizer.image_token_id,
        preprocess=PREPROCESS,
        encoding=EncodingConfig(max_length_tokens=256, max_images=4),
    )
    model = Mllm(config).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4)
    return model


def tiny_encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer, image_tokens=4, config=EncodingConfig(max_length_tokens=256, max_images=4))


def tiny_processor() -> ImageProcessor:
    return ImageProcessor(PREPROCESS)


def question(text: str, images: Sequence[bytes] = (), *, branch: int = 0) -> Prompt:
    """The images, then the question."""
    segments = [Segment(type="image", media=at) for at in range(len(images))]
    return Prompt(segments=[*segments, Segment(text=text, branch=branch)], media=images)
