"""The multimodal language model: an image encoder, a connector and a decoder, each named by its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rebus import registry
from rebus.data.encoding import EncodingConfig
from rebus.data.preprocess import ImageProcessorConfig, check_digest
from rebus.data.preprocess.image import check_size
from rebus.data.preprocess.media import MediaSettings, preprocess_digest
from rebus.errors import invalid
from rebus.models import images_beside
from rebus.models.audio import AudioConfig, AudioPart
from rebus.models.cache import KVCache
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors.base import JoinsTiles, ReadsPadded, pad
from rebus.models.connectors.layers import check_layers, read_features
from rebus.models.encoders.base import ReadsAnyShape
from rebus.models.encoders.video import FramePositions, FramePositionsConfig
from rebus.models.gated_cross_attention import GatedCrossAttentionConfig, Images, add_cross_attention, looking_at
from rebus.models.media import MediaBatch, MediaItem
from rebus.models.packing import PackedRows
from rebus.models.without_images import is_data_parallel, no_images, no_sound
from rebus.registry import Spec


@dataclass(frozen=True, kw_only=True)
class MllmConfig:
    """The three parts, by component name and settings, and what they need for more than single squares."""

    encoder: Spec = registry.component("encoder", "vit")
    connector: Spec = registry.component("connector", "mlp")
    decoder: Spec = registry.component("decoder", "llama")
    # Ids the decoder knows; the tokenizer's.
    vocab_size: int
    # The placeholder that features take the place of: of images, and of videos and sounds likewise.
    image_token_id: int
    # How images become the encoder's input.
    preprocess: ImageProcessorConfig = field(default_factory=ImageProcessorConfig)
    # Tiles, frames of videos, sound; without it an image is one square, and other media are refused.
    media: MediaSettings | None = None
    # What hears; without it sound is refused.
    audio: AudioConfig | None = None
    # Tells frames of a video apart by when they were shown; without it they are images one after another.
    frame_positions: FramePositionsConfig | None = None
    # Of the preprocessing the model was trained with; empty in a new config, filled by the model.
    preprocess_digest: str = ""
    # Bounds of the rows the model was trained on.
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    # Images are read by layers of their own, not in the text: a row holds one placeholder an image, not its tokens.
    cross_attention: GatedCrossAttentionConfig | None = None
    # Of a model from elsewhere; one trained here has those of its tokenizer.
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)

    def __post_init__(self) -> None:
        if not 0 <= self.image_token_id < self.vocab_size:
            raise ValueError(f"image_token_id={self.image_token_id} is outside vocab_size={self.vocab_size}")
        if self.media is None and (self.audio is not None or self.frame_positions is not None):
            raise ValueError("audio and frame_positions need media, which says how sound and videos are read")
        if self.media is not None and self.cross_attention is not None:
            raise ValueError("cross_attention reads images of one square each, so it goes without media")


class Mllm(nn.Module):
    """Images become decoder embeddings in place of ``<image>`` tokens; the decoder predicts text."""

    def __init__(self, config: MllmConfig) -> None:
        super().__init__()
        self.vision_encoder = registry.build("encoder", config.encoder, field="model.encoder")
        self.decoder = registry.build("decoder", config.decoder, field="model.decoder", vocab_size=config.vocab_size)
        self.connector = registry.build(
            "connector",
            config.connector,
            field="model.connector",
            width_in=self.vision_encoder.width,
            width_out=self.decoder.config.width,
            grid=self.vision_encoder.grid,
        )
        digest = preprocess_digest(config.preprocess, config.media)
        check_digest(digest, config.preprocess_digest)
        # Frames, which positions are of, are squares.
        any_shape = self.reads_any_shape and config.frame_positions is None
        check_size(config.preprocess, self.vision_encoder.image_size, any_shape=any_shape)
        self.config = config = dataclasses.replace(config, preprocess_digest=digest)
        names = (config.encoder["name"], config.connector["name"])
        check_layers(self.vision_encoder, self.connector, names=names, field="model.connector")
        if isinstance(self.connector, JoinsTiles):
            _check_joined(config)
        self.audio = self._audio_part(config)
        self.frame_positions: FramePositions | None = None
        if config.frame_positions is not None:
            self.frame_positions = FramePositions(config.frame_positions, self.vision_encoder.width)
        if config.cross_attention is not None:
            width = self.decoder.config.width
            add_cross_attention(self.decoder.layers, config.cross_attention, width=width, image_width=width)

    def _audio_part(self, config: MllmConfig) -> AudioPart | None:
        if config.audio is None or config.media is None:
            return None
        width = self.decoder.config.width
        return AudioPart(config.audio, log_mel=config.media.audio, width_out=width, field="model.audio")

    @property
    def image_tokens(self) -> int:
        """Tokens that one square takes in a row: an image, a tile or a frame."""
        return self.connector.num_tokens if self.config.cross_attention is None else 1

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns that an image's tokens lie on.

        Raises ``InvalidArgumentError`` where the connector's tokens have no places in the image, or an image may be
        more than one square.
        """
        if isinstance(self.connector, JoinsTiles):
            name = self.config.connector["name"]
            raise invalid("model.connector", f"{name!r} gives images of many sizes, but one grid is needed here")
        if self.config.media is not None:
            raise invalid("model.media", "an image may be many tiles, but one grid of tokens is needed here")
        if self.connector.grid is None:
            name = self.config.connector["name"]
            raise invalid(
                "model.connector", f"the tokens of {name!r} have no places in the image, which is needed here"
            )
        return self.connector.grid

    @property
    def reads_any_shape(self) -> bool:
        """Whether ``encode_images`` takes images of many shapes; else all are of the encoder's size."""
        return isinstance(self.vision_encoder, ReadsAnyShape) and isinstance(self.connector, ReadsPadded)

    def encode_images(self, pixels: Tensor | Sequence[Tensor], frames: Tensor | None = None) -> Tensor:
        """Decoder embeddings ``[N, tokens, D]`` of normalised squares ``[N, 3, H, W]``, or ``[3, H, W]`` each.

        Images of many shapes are encoded in one sequence, without padding; there must be at least one. ``frames``,
        int64 ``[N]``, says which frame of its video each square is, -1 for an image; without it all are images. Raises
        ``InvalidArgumentError`` for many shapes unless ``reads_any_shape``, and for an image smaller than a patch.
        """
        if not isinstance(pixels, Tensor):
            return self._encode_shapes(pixels)
        features = self.image_features(pixels)
        if self.frame_positions is not None:
            frames = pixels.new_full((len(pixels),), -1, dtype=torch.int64) if frames is None else frames
            features = self.frame_positions(features, frames)
        return self.connector(features)

    def _encode_shapes(self, images: Sequence[Tensor]) -> Tensor:
        if not self.reads_any_shape:
            names = f"{self.config.encoder['name']} and {self.config.connector['name']}"
            raise invalid("images", f"{names} do not read images of many shapes")
        try:
            features = self.vision_encoder.forward_packed(images)
        except ValueError as error:
            raise invalid("images", str(error)) from None
        return self.connector(*pad(features))

    def encode_tiles(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Decoder embeddings ``[tokens, D]`` of images one after another, each an overview and tiles ``[n, 3, S, S]``.

        ``sizes`` are the images' heights and widths before they were cut. Raises ``InvalidArgumentError`` where the
        connector knows no tiles, and for an image that has not as many as its size says.
        """
        items = [MediaItem("image", len(tiles), size) for tiles, size in zip(images, sizes, strict=True)]
        features = self.encode_media(MediaBatch(pixels=torch.cat(list(images)), items=items))
        assert features is not None
        return features

    def _join(self, tiles: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens ``[tokens, D]`` of an image of ``size`` (height, width), from ``[n, T, D]`` of its tiles."""
        if not isinstance(self.connector, JoinsTiles):
            raise invalid("model.connector", f"{self.config.connector['name']!r} does not put tiles together")
        try:
            return self.connector.join(tiles, size, side=self.vision_encoder.image_size)
        except ValueError as error:
            raise invalid("images", str(error)) from None

    def encode_media(self, media: MediaBatch) -> Tensor | None:
        """Decoder embeddings of a batch's media, in order: ``[N, image_tokens, D]`` where all are images of one square,
        else ``[tokens, D]``; ``None`` where there are no media.

        Raises ``InvalidArgumentError`` for sound that the model cannot hear, and what ``encode_tiles`` raises.
        """
        images = self.encode_images(media.pixels, media.frame_numbers()) if len(media.pixels) else None
        sounds = None if media.spectrograms is None else self.encode_audio(media.spectrograms)
        return images if media.is_uniform else media.interleave(images, sounds, join=self._join)

    def encode_audio(self, spectrograms: Tensor) -> Tensor:
        """Decoder embeddings ``[P, tokens, D]`` of log-mel pieces ``[P, mels, frames]``.

        Raises ``InvalidArgumentError`` where the model has no audio part.
        """
        if self.audio is None:
            raise invalid("model.audio", "is not there, so the model hears nothing")
        return self.audio(spectrograms)

    def image_features(self, pixels: Tensor) -> Tensor | list[Tensor]:
        """Features ``[N, T, width]`` of the encoder's last layer, or of each layer that the connector reads."""
        return read_features(self.vision_encoder, self.connector, pixels)

    def embed(self, input_ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Embeddings ``[..., D]`` of ``input_ids`` ``[...]``, placeholders filled in order.

        Features are ``[N, connector.num_tokens, D]``, or ``[tokens, D]`` of media that take unlike numbers of tokens.
        Where images are read by cross-attention, placeholders, one an image, stay words. Raises
        ``InvalidArgumentError`` where they and the features do not match in number.
        """
        embeds = self.decoder.embed_tokens(input_ids)
        at = input_ids == self.config.image_token_id
        found = 0 if image_features is None else image_features.shape[:-1].numel()
        if self.config.cross_attention is not None:
            found //= self.connector.num_tokens
        if (expected := int(at.sum())) != found:
            raise invalid("images", f"the text has {expected} image tokens, the images give {found}")
        if image_features is None or not found or self.config.cross_attention is not None:
            return embeds
        return embeds.masked_scatter(at[..., None], image_features.to(embeds.dtype))

    def images_beside(
        self, input_ids: Tensor, embeds: Tensor, image_features: Tensor | None, mask: Tensor | None = None
    ) -> Images | None:
        """What whole rows ``[B, S]`` look at by cross-attention; None where images stand in the text."""
        if self.config.cross_attention is None:
            return None
        is_image = input_ids == self.config.image_token_id
        return images_beside.of_rows(is_image, self._by_image(image_features), embeds, mask)

    def decode(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        images: Images | None = None,
    ) -> Tensor:
        """Hidden states ``[B, S, D]``; see the decoder's ``forward``. ``images`` are those of ``images_beside``."""
        with nullcontext() if images is None else looking_at(self.decoder.layers, images):
            return self.decoder(embeds, positions, mask, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits ``[..., vocab_size]`` of hidden states ``[..., D]``."""
        return self.decoder.logits(hidden)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for ``batch_size`` rows of up to ``capacity`` tokens."""
        return self.decoder.new_cache(batch_size, capacity)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        pixels: Tensor | Sequence[Tensor] | None = None,
        media: MediaBatch | None = None,
    ) -> Tensor:
        """Hidden states of whole rows.

        ``pixels``, as ``encode_images`` takes them, holds the images in order of their placeholders, of one square (or
        shape) each; ``media`` all that is shown and heard where that is more. In training with other processes,
        encoders and connectors run even if there is nothing for them.
        """
        if media is None and pixels is not None:
            media = MediaBatch.of_images(pixels)
        shared = self.training and is_data_parallel()
        no_pixels, no_spectrograms = media is None or not len(media.pixels), media is None or media.spectrograms is None
        # What sees runs before what hears in every process, whichever of the two has input: FSDP gathers in that order.
        zeros = [no_images(self)] if shared and no_pixels else []
        features = None if media is None else self.encode_media(media)
        embeds = self.embed(input_ids, features)
        if shared and no_spectrograms and self.audio is not None:
            zeros.append(no_sound(self.audio))
        embeds = sum(zeros, start=embeds)
        return self.decode(embeds, positions, mask, images=self.images_beside(input_ids, embeds, features, mask))

    def forward_packed(
        self, rows: PackedRows, image_features: Tensor | None, layer_inputs: list[Tensor] | None = None
    ) -> Tensor:
        """Hidden states ``[T, D]`` of a flat batch; features (see ``embed``) as ``rows.images`` lists them.

        What each decoder layer reads ``[T, D]`` is appended to ``layer_inputs``.
        """
        embeds = self.embed(rows.input_ids, image_features)
        if self.config.cross_attention is None:
            return self.decoder.forward_packed(embeds, rows.positions, rows.layout, layer_inputs)
        is_image = rows.input_ids == self.config.image_token_id
        images = images_beside.of_packed(is_image, self._by_image(image_features), embeds, rows)
        with looking_at(self.decoder.layers, images):
            return self.decoder.forward_packed(embeds, rows.positions, rows.layout, layer_inputs)

    def _by_image(self, features: Tensor | None) -> Tensor | None:
        """Features that may lie flat as ``[N, connector.num_tokens, D]``."""
        return None if features is None else features.reshape(-1, self.connector.num_tokens, features.shape[-1])


def _check_joined(config: MllmConfig) -> None:
    """``InvalidArgumentError`` for what asks for as many tokens an image, or cuts it in another way."""
    for name in ("media", "cross_attention"):
        if getattr(config, name) is not None:
            raise invalid(f"model.{name}", f"does not go with {config.connector['name']!r}, which joins its own tiles")


def count_parameters(module: nn.Module) -> int:
    """Number of weights, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
