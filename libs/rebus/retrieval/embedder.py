"""Texts and images to unit vectors, by a model's folder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rebus import cancellation
from rebus.errors import FailedPreconditionError, ResourceExhaustedError
from rebus.models import load_model
from rebus.models.dual_encoder import DualEncoder
from rebus.models.feature_cache import encode_images
from rebus.registry import register
from rebus.store import Store, manifests, model_versions

# Inputs of one call; what is larger comes in several.
MAX_INPUTS = 65_536
# Between two batches, work whose call has ended stops.
_TEXTS_AT_A_TIME = 1024
_IMAGES_AT_A_TIME = 64


class Embedder:
    """A loaded dual encoder. Its methods may run in many threads at once: they only read the weights."""

    def __init__(self, model: DualEncoder) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = model.processor

    @classmethod
    def load(cls, folder: Path) -> Embedder:
        """Loads a model's folder; ``FailedPreconditionError`` if it does not embed or its preprocessing differs."""
        model = load_model(folder)
        if not isinstance(model, DualEncoder):
            raise FailedPreconditionError(f"a {type(model).__name__} does not embed; a dual-encoder does")
        return cls(model)

    @property
    def dimension(self) -> int:
        """Dimensions of a vector."""
        return self.model.config.width

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 ``[N, dimension]``."""
        _check(len(texts))
        out = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            cancellation.current().check()
            tokens = self.model.text_encoder.tokenize(texts[start : start + _TEXTS_AT_A_TIME])
            with torch.inference_mode():
                out[start : start + len(tokens)] = self.model.embed_tokens(tokens).cpu().numpy()
        return out

    def embed_images(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Unit vectors, float32 ``[N, dimension]``; ``InvalidArgumentError`` names ``images[i]`` if it is no image."""
        _check(len(images))
        out = np.empty((len(images), self.dimension), np.float32)
        for start in range(0, len(images), _IMAGES_AT_A_TIME):
            cancellation.current().check()
            chunk = images[start : start + _IMAGES_AT_A_TIME]
            features = encode_images(
                self.model.vision_encoder,
                self.processor,
                chunk,
                names=[f"images[{at}]" for at in range(start, start + len(chunk))],
            )
            out[start : start + len(chunk)] = self.embed_features(features)
        return out

    def embed_features(self, features: torch.Tensor) -> NDArray[np.float32]:
        """Unit vectors of images whose pooled features ``[N, pooled width]`` are at hand."""
        with torch.inference_mode():
            return self.model.embed_features(features.to(self.model.calibration.logit_scale.device)).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """Which model embeds: ``models/x/versions/3``, or an alias."""

    model_version: str


@register("embedder", "dual-encoder", config=DualEncoderConfig)
def dual_encoder(config: DualEncoderConfig, store: Store) -> Embedder:
    """A dual encoder of the store, fetched into a folder that is gone when it is loaded."""
    model = model_versions.get(store, config.model_version)
    with (
        tempfile.TemporaryDirectory(prefix="rebus-embedder-") as cache,
        manifests.fetch(store, model.name, Path(cache)) as folder,
    ):
        return Embedder.load(folder)


def _check(count: int) -> None:
    if count > MAX_INPUTS:
        raise ResourceExhaustedError(f"{count} inputs in one call, more than the limit of {MAX_INPUTS}")
