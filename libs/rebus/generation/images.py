"""Decoder embeddings of images, kept by content: a conversation or a benchmark asks about the same image many times."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from rebus.data.preprocess import ImageProcessor
from rebus.models.mllm import Mllm

_ENCODE_BATCH = 64


class ImageFeatures:
    """Encodes images with a model, least recently used ones dropped beyond ``cache_bytes``. Thread-safe."""

    def __init__(self, model: Mllm, processor: ImageProcessor, cache_bytes: int) -> None:
        self._model = model
        self._processor = processor
        self._cache_bytes = cache_bytes
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def __call__(self, images: Sequence[bytes]) -> Tensor | None:
        """``[N, image_tokens, D]`` in the order given, each distinct image encoded once; ``None`` for no image.

        Raises ``InvalidArgumentError`` naming ``images[i]`` for bytes that are no image.
        """
        if not images:
            return None
        keys = [hashlib.sha256(image).digest() for image in images]
        found = self._lookup(keys)
        missing = {key: at for at, key in reversed(list(enumerate(keys))) if key not in found}
        for start in range(0, len(missing), _ENCODE_BATCH):
            batch = dict(list(missing.items())[start : start + _ENCODE_BATCH])
            encoded = self._encode([self._pixels(images, at) for at in batch.values()])
            found.update(zip(batch, encoded, strict=True))
        self._keep({key: found[key] for key in missing})
        return torch.stack([found[key] for key in keys])

    def _pixels(self, images: Sequence[bytes], at: int) -> Tensor:
        return torch.from_numpy(self._processor(images[at], field=f"images[{at}]"))

    @torch.inference_mode()
    def _encode(self, pixels: list[Tensor]) -> list[Tensor]:
        device = next(self._model.parameters()).device
        normalised = [torch.from_numpy(self._processor.normalise(image[None].numpy())).to(device) for image in pixels]
        squares = self._processor.config.is_square
        shown = torch.cat(normalised) if squares else [image[0] for image in normalised]
        return [row.clone() for row in self._model.encode_images(shown)]

    def _lookup(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        with self._lock:
            found = {key: self._held[key] for key in keys if key in self._held}
            for key in found:
                self._held.move_to_end(key)
            return found

    def _keep(self, encoded: dict[bytes, Tensor]) -> None:
        with self._lock:
            for key, features in encoded.items():
                if key not in self._held:
                    self._held[key] = features
                    self._held_bytes += features.nbytes
            while self._held and self._held_bytes > self._cache_bytes:
                self._held_bytes -= self._held.popitem(last=False)[1].nbytes
