"""Decoder embeddings of media, kept by content: a conversation or a benchmark asks about the same image many times."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebus.data.encoding import Row
from rebus.data.preprocess.reading import Medium
from rebus.data.sample import Segment
from rebus.models.media import collate, reader_of
from rebus.models.mllm import Mllm

# Squares and pieces of sound that are encoded together, about.
_ENCODE_BATCH = 64


@dataclass(frozen=True)
class _Shown:
    """An image, a video or a sound of a row."""

    segment: Segment
    data: bytes
    # Of the row; 1 where it does not depend on it how an image is read.
    num_images: int

    @property
    def key(self) -> bytes:
        """Equal only where the embeddings are."""
        s = self.segment
        read_as = f"{s.type} {s.start_seconds} {s.end_seconds} {self.num_images}\n"
        return hashlib.sha256(read_as.encode() + hashlib.sha256(self.data).digest()).digest()


class MediaFeatures:
    """Encodes media with a model, least recently used ones dropped beyond ``cache_bytes``. Thread-safe."""

    def __init__(self, model: Mllm, cache_bytes: int) -> None:
        self._model = model
        self._reader = reader_of(model)
        self._cache_bytes = cache_bytes
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def __call__(self, rows: Sequence[tuple[Row, Sequence[bytes]]]) -> Tensor | None:
        """``[tokens, D]`` of the rows' media in order, each distinct one encoded once; ``None`` for none.

        Each row comes with the media of its prompt. Raises ``InvalidArgumentError`` naming ``images[i]``, the i-th of
        all, for bytes that cannot be read.
        """
        shown = list(self._shown(rows))
        if not shown:
            return None
        keys = [item.key for item in shown]
        found = self._lookup(keys)
        missing = {key: at for at, key in reversed(list(enumerate(keys))) if key not in found}
        read = ((key, self._read(shown[at], at)) for key, at in missing.items())
        for batch in _batches(read):
            found.update(zip(batch, self._encode(list(batch.values())), strict=True))
        self._keep({key: found[key] for key in missing})
        return torch.cat([found[key] for key in keys])

    def _shown(self, rows: Sequence[tuple[Row, Sequence[bytes]]]) -> Iterator[_Shown]:
        splits = self._model.config.media is not None
        for row, media in rows:
            for medium in row.media:
                yield _Shown(medium.segment, media[medium.segment.media], row.num_images if splits else 1)

    def _read(self, item: _Shown, at: int) -> Medium:
        return self._reader.read(item.segment, item.data, num_images=item.num_images, field=f"images[{at}]")

    @torch.inference_mode()
    def _encode(self, media: list[Medium]) -> list[Tensor]:
        """Embeddings ``[tokens, D]`` of each."""
        device = next(self._model.parameters()).device
        batch = collate(media, self._reader.processor).to(device)
        features = self._model.encode_media(batch)
        assert features is not None
        parts = features if batch.is_uniform else features.split([self._reader.tokens(medium) for medium in media])
        return [part.clone() for part in parts]

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


def _batches(media: Iterable[tuple[bytes, Medium]]) -> Iterator[dict[bytes, Medium]]:
    batch: dict[bytes, Medium] = {}
    for key, medium in media:
        batch[key] = medium
        if sum(len(held.values) for held in batch.values()) >= _ENCODE_BATCH:
            yield batch
            batch = {}
    if batch:
        yield batch
