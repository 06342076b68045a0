"""Prepared media as one batch of the encoders' inputs, and their features in the order of the placeholders."""

# Shape suffixes: N squares, P pieces of sound, S side, M mels, F frames, T tokens, D width.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rebus.data.encoding import Encoder
from rebus.data.preprocess.image import ImageProcessorConfig
from rebus.data.preprocess.media import MediaProcessor, MediaProcessorConfig, MediaSettings, media_config
from rebus.data.preprocess.reading import MediaReader, Medium
from rebus.data.sample import SegmentType
from rebus.data.tokenizer import Tokenizer
from rebus.models.connectors.base import JoinsTiles

if TYPE_CHECKING:
    from rebus.models.mllm import Mllm


@dataclass(frozen=True)
class MediaItem:
    """An image, a video or a sound of a batch."""

    type: SegmentType
    # Squares, or pieces of sound.
    num_inputs: int
    # Height and width of an image whose tiles are joined; None where every square gives tokens of its own.
    size: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class MediaBatch:
    """What the encoders read for the media of a batch."""

    # float32 [N, 3, S, S]: the squares of all images and videos; [3, H, W] each where images keep their shapes
    pixels: Tensor | Sequence[Tensor]
    # float32 [P, M, F]: the pieces of all sounds; None where there are none
    spectrograms: Tensor | None = None
    # In order of the placeholders.
    items: Sequence[MediaItem]

    @classmethod
    def of_images(cls, pixels: Tensor | Sequence[Tensor]) -> MediaBatch:
        """Images ``[N, 3, S, S]`` of one square each, or ``[3, H, W]`` of many shapes."""
        return cls(pixels=pixels, items=[MediaItem("image", 1)] * len(pixels))

    def to(self, device: torch.device) -> MediaBatch:
        """The same on ``device``."""
        sound = None if self.spectrograms is None else self.spectrograms.to(device)
        pixels = self.pixels.to(device) if isinstance(self.pixels, Tensor) else [p.to(device) for p in self.pixels]
        return MediaBatch(pixels=pixels, spectrograms=sound, items=self.items)

    @property
    def num_bytes(self) -> int:
        """Memory that the inputs take."""
        sound = 0 if self.spectrograms is None else self.spectrograms.nbytes
        return sum(image.nbytes for image in self.pixels) + sound

    @property
    def is_uniform(self) -> bool:
        """Whether all media are images of one square."""
        return all(item == MediaItem("image", 1) for item in self.items)

    def frame_numbers(self) -> Tensor:
        """int64 ``[N]``: which frame of its video a square is; -1 for those of images."""
        numbers = [
            at if item.type == "video" else -1
            for item in self.items
            if item.type != "audio"
            for at in range(item.num_inputs)
        ]
        return torch.tensor(numbers, dtype=torch.int64, device=self.pixels[0].device if len(self.pixels) else None)

    def interleave(
        self, images: Tensor | None, sounds: Tensor | None, *, join: Callable[[Tensor, tuple[int, int]], Tensor]
    ) -> Tensor | None:
        """Features ``[N, T, D]`` of the squares and ``[P, T', D]`` of sound as ``[tokens, D]``, medium after medium.

        ``join`` makes the tokens ``[tokens, D]`` of an image with a ``size`` of those of its tiles ``[n, T, D]``.
        """
        starts = {"squares": 0, "pieces": 0}
        parts: list[Tensor] = []
        for item in self.items:
            source, features = ("pieces", sounds) if item.type == "audio" else ("squares", images)
            assert features is not None
            start = starts[source]
            starts[source] = stop = start + item.num_inputs
            part = features[start:stop]
            parts.append(part.flatten(0, 1) if item.size is None else join(part, item.size))
        return torch.cat(parts) if parts else None


def collate(media: Sequence[Medium], processor: MediaProcessor) -> MediaBatch:
    """The media of a batch, in order of their placeholders, normalised."""
    pieces = [medium.values for medium in media if medium.type == "audio"]
    return MediaBatch(
        pixels=_normalised([image for medium in media if medium.type != "audio" for image in medium.values], processor),
        spectrograms=torch.from_numpy(np.concatenate(pieces)) if pieces else None,
        items=[MediaItem(medium.type, len(medium.values), medium.size) for medium in media],
    )


def _normalised(images: Sequence[NDArray[np.uint8]], processor: MediaProcessor) -> Tensor | Sequence[Tensor]:
    """Images ``[H, W, 3]`` as one batch, or each by itself where they keep their shapes."""
    side, normalise = processor.config.image.image_size, processor.image_processor.normalise
    if not images:
        return torch.zeros(0, 3, side, side)
    if processor.config.image.is_square:
        return torch.from_numpy(normalise(np.stack(images)))
    return [torch.from_numpy(normalise(image[None])[0]) for image in images]


def reader_of(model: Mllm) -> MediaReader:
    """Reads media as the model was trained to."""
    config = model.config
    return MediaReader(
        MediaProcessor(_processing(config.preprocess, config.media)),
        image_tokens=model.image_tokens,
        audio_tokens=None if model.audio is None else model.audio.num_tokens,
        max_frames=None if model.frame_positions is None else model.frame_positions.num_frames,
        layout=model.connector if isinstance(model.connector, JoinsTiles) else None,
    )


def _processing(image: ImageProcessorConfig, media: MediaSettings | None) -> MediaProcessorConfig:
    return MediaProcessorConfig(image=image) if media is None else media_config(image, media)


def encoder_of(model: Mllm, tokenizer: Tokenizer) -> Encoder:
    """Encodes rows for the model."""
    one_square = model.config.media is None and not isinstance(model.connector, JoinsTiles)
    sizes = None if one_square else reader_of(model)
    return Encoder(tokenizer, image_tokens=model.image_tokens, config=model.config.encoding, sizes=sizes)
