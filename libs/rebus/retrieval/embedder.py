"""Texts and images to unit vectors, by a model's folder."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rebus import cancellation
from rebus.data.encoding import Row
from rebus.data.preprocess import ImageProcessor
from rebus.data.tokenizer import Tokenizer
from rebus.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    invalid,
)
from rebus.models import load_model
from rebus.models.dual_encoder import DualEncoder
from rebus.models.feature_cache import encode_images
from rebus.models.mllm_embedder import EmbeddingRows, MllmEmbedder
from rebus.models.packing import pack_rows
from rebus.registry import register
from rebus.store import Store, manifests, model_versions

T = TypeVar("T")
# Of models that embed.
ARCHITECTURES = ("dual-encoder", "mllm-embedder")
# Inputs of one call; what is larger comes in several.
MAX_INPUTS = 65_536
# Between two batches, work whose call has ended stops.
_TEXTS_AT_A_TIME = 1024
_IMAGES_AT_A_TIME = 64


class Embedder(ABC):
    """A loaded model that embeds. Its methods may run in many threads at once: they only read the weights."""

    @classmethod
    def load(cls, folder: Path) -> Embedder:
        """Loads a model's folder; ``FailedPreconditionError`` if it does not embed or its preprocessing differs."""
        model = load_model(folder)
        if isinstance(model, DualEncoder):
            return DualEncoderEmbedder(model)
        if isinstance(model, MllmEmbedder):
            return MllmRowEmbedder(model, Tokenizer.load(folder))
        raise FailedPreconditionError(f"a {type(model).__name__} does not embed; {' and '.join(ARCHITECTURES)} do")

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Dimensions of a vector."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 ``[N, dimension]``; ``InvalidArgumentError`` names ``texts[i]`` if it is too long."""
        return self._in_chunks(texts, _TEXTS_AT_A_TIME, "texts", self._embed_texts)

    def embed_images(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Unit vectors, float32 ``[N, dimension]``; ``InvalidArgumentError`` names ``images[i]`` if it is no image."""
        return self._in_chunks(images, _IMAGES_AT_A_TIME, "images", self._embed_images)

    @abstractmethod
    def _embed_texts(self, texts: Sequence[str], names: Sequence[str]) -> torch.Tensor: ...

    @abstractmethod
    def _embed_images(self, images: Sequence[bytes], names: Sequence[str]) -> torch.Tensor: ...

    def _in_chunks(
        self, inputs: Sequence[T], size: int, kind: str, embed: Callable[[Sequence[T], Sequence[str]], torch.Tensor]
    ) -> NDArray[np.float32]:
        _check(len(inputs))
        out = np.empty((len(inputs), self.dimension), np.float32)
        for start in range(0, len(inputs), size):
            cancellation.current().check()
            chunk = inputs[start : start + size]
            names = [f"{kind}[{at}]" for at in range(start, start + len(chunk))]
            with torch.inference_mode():
                out[start : start + len(chunk)] = embed(chunk, names).cpu().numpy()
        return out


class DualEncoderEmbedder(Embedder):
    """A loaded dual encoder."""

    def __init__(self, model: DualEncoder) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = model.processor

    @property
    def dimension(self) -> int:
        """Dimensions of a vector."""
        return self.model.config.width

    def embed_features(self, features: torch.Tensor) -> NDArray[np.float32]:
        """Unit vectors of images whose pooled features ``[N, pooled width]`` are at hand."""
        with torch.inference_mode():
            return self.model.embed_features(features.to(self.model.calibration.logit_scale.device)).cpu().numpy()

    def _embed_texts(self, texts: Sequence[str], names: Sequence[str]) -> torch.Tensor:
        return self.model.embed_tokens(self.model.text_encoder.tokenize(texts))

    def _embed_images(self, images: Sequence[bytes], names: Sequence[str]) -> torch.Tensor:
        features = encode_images(self.model.vision_encoder, self.processor, images, names=names)
        return torch.from_numpy(self.embed_features(features))


class MllmRowEmbedder(Embedder):
    """A loaded multimodal language model that embeds."""

    def __init__(self, model: MllmEmbedder, tokenizer: Tokenizer) -> None:
        self.model = model.eval().requires_grad_(False)
        config = model.config.mllm
        if tokenizer.vocab_size != config.vocab_size or tokenizer.image_token_id != config.image_token_id:
            raise DataLossError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and image token {tokenizer.image_token_id}, "
                f"the model {config.vocab_size} and {config.image_token_id}"
            )
        self.processor = ImageProcessor(config.preprocess)
        self._rows = EmbeddingRows(model.config, tokenizer, image_tokens=model.mllm.image_tokens)

    @property
    def dimension(self) -> int:
        """Dimensions of a vector."""
        return self.model.width

    def _embed_texts(self, texts: Sequence[str], names: Sequence[str]) -> torch.Tensor:
        rows: list[Row] = []
        for text, name in zip(texts, names, strict=True):
            try:
                rows.append(self._rows.text(text))
            except InvalidArgumentError as error:
                raise invalid(name, str(error)) from None
        side = self.processor.config.image_size
        return self._embed(rows, torch.zeros(0, 3, side, side))

    def _embed_images(self, images: Sequence[bytes], names: Sequence[str]) -> torch.Tensor:
        pixels = np.stack([self.processor(image, field=name) for image, name in zip(images, names, strict=True)])
        return self._embed([self._rows.image()] * len(images), torch.from_numpy(self.processor.normalise(pixels)))

    def _embed(self, rows: Sequence[Row], pixels: torch.Tensor) -> torch.Tensor:
        packed = pack_rows(rows, image_token_id=self.model.config.mllm.image_token_id)
        given = pixels[[row for row, _ in packed.images]] if packed.images else pixels
        return self.model(packed, given)


@dataclass(frozen=True, kw_only=True)
class StoredEmbedderConfig:
    """Which model embeds: ``models/x/versions/3``, or an alias."""

    model_version: str


@register("embedder", "dual-encoder", config=StoredEmbedderConfig)
@register("embedder", "mllm-embedder", config=StoredEmbedderConfig)
def stored_embedder(config: StoredEmbedderConfig, store: Store) -> Embedder:
    """A model of the store that embeds, fetched into a folder that is gone when it is loaded."""
    model = model_versions.get(store, config.model_version)
    with (
        tempfile.TemporaryDirectory(prefix="rebus-embedder-") as cache,
        manifests.fetch(store, model.name, Path(cache)) as folder,
    ):
        return Embedder.load(folder)


def _check(count: int) -> None:
    if count > MAX_INPUTS:
        raise ResourceExhaustedError(f"{count} inputs in one call, more than the limit of {MAX_INPUTS}")
