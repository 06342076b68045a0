"""The multimodal language model: an image encoder, a connector and a decoder, each named by its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rebus import registry
from rebus.data.encoding import EncodingConfig
from rebus.data.preprocess import ImageProcessorConfig, model_processor
from rebus.errors import invalid
from rebus.models.cache import KVCache
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors.base import JoinsTiles, ReadsLayers, ReadsPadded, pad
from rebus.models.encoders.base import GivesLayers, ReadsAnyShape
from rebus.models.packing import PackedRows
from rebus.models.without_images import is_data_parallel, no_images
from rebus.registry import Spec


@dataclass(frozen=True, kw_only=True)
class MllmConfig:
    """The three parts, by component name and settings."""

    encoder: Spec = registry.component("encoder", "vit")
    connector: Spec = registry.component("connector", "mlp")
    decoder: Spec = registry.component("decoder", "llama")
    # Ids the decoder knows; the tokenizer's.
    vocab_size: int
    # The placeholder that image features take the place of.
    image_token_id: int
    # How images become the encoder's input.
    preprocess: ImageProcessorConfig = field(default_factory=ImageProcessorConfig)
    # Of the preprocessing the model was trained with; empty in a new config, filled by the model.
    preprocess_digest: str = ""
    # Bounds of the rows the model was trained on.
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    # Of a model from elsewhere; one trained here has those of its tokenizer.
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)

    def __post_init__(self) -> None:
        if not 0 <= self.image_token_id < self.vocab_size:
            raise ValueError(f"image_token_id={self.image_token_id} is outside vocab_size={self.vocab_size}")


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
        processor = model_processor(
            config.preprocess,
            image_size=self.vision_encoder.image_size,
            digest=config.preprocess_digest,
            any_shape=self.reads_any_shape,
        )
        self.config = config = dataclasses.replace(config, preprocess_digest=processor.digest)
        if isinstance(self.connector, ReadsLayers):
            _check_layers(self.connector.feature_layers, self.vision_encoder, config)

    @property
    def image_tokens(self) -> int:
        """Tokens that one image takes in a row."""
        return self.connector.num_tokens

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns that an image's tokens lie on.

        Raises ``InvalidArgumentError`` where the connector's tokens have no places in the image.
        """
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

    def encode_images(self, pixels: Tensor | Sequence[Tensor]) -> Tensor:
        """Decoder embeddings ``[N, image_tokens, D]`` of normalised images ``[N, 3, H, W]``, or ``[3, H_i, W_i]`` each.

        Images of many shapes are encoded in one sequence, without padding; there must be at least one. Raises
        ``InvalidArgumentError`` for them unless ``reads_any_shape``, and for one that is smaller than a patch.
        """
        if isinstance(pixels, Tensor):
            return self.connector(self.image_features(pixels))
        if not self.reads_any_shape:
            names = f"{self.config.encoder['name']} and {self.config.connector['name']}"
            raise invalid("images", f"{names} do not read images of many shapes")
        try:
            features = self.vision_encoder.forward_packed(pixels)
        except ValueError as error:
            raise invalid("images", str(error)) from None
        return self.connector(*pad(features))

    def encode_tiles(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Decoder embeddings ``[tokens, D]`` of images one after another, each an overview and tiles ``[n, 3, S, S]``.

        ``sizes`` are the images' heights and widths before they were cut. Raises ``InvalidArgumentError`` where the
        connector knows no tiles, and for an image that has not as many as its size says.
        """
        if not isinstance(self.connector, JoinsTiles):
            raise invalid("model.connector", f"{self.config.connector['name']!r} does not put tiles together")
        parts = self.encode_images(torch.cat(list(images))).split([len(tiles) for tiles in images])
        side = self.vision_encoder.image_size
        try:
            joined = [self.connector.join(part, size, side=side) for part, size in zip(parts, sizes, strict=True)]
        except ValueError as error:
            raise invalid("images", str(error)) from None
        return torch.cat(joined)

    def image_features(self, pixels: Tensor) -> Tensor | list[Tensor]:
        """Features ``[N, T, width]`` of the encoder's last layer, or of each layer that the connector reads."""
        if isinstance(self.connector, ReadsLayers):
            return self.vision_encoder.forward_layers(pixels, self.connector.feature_layers)
        return self.vision_encoder(pixels)

    def embed(self, input_ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Embeddings ``[..., D]`` of ``input_ids`` ``[...]``, placeholders filled in order.

        Features are ``[N, image_tokens, D]``, or ``[tokens, D]`` of media that take unlike numbers of tokens. Raises
        ``InvalidArgumentError`` where they and the placeholders do not match in number.
        """
        embeds = self.decoder.embed_tokens(input_ids)
        at = input_ids == self.config.image_token_id
        found = 0 if image_features is None else image_features.shape[:-1].numel()
        if (expected := int(at.sum())) != found:
            raise invalid("images", f"the text has {expected} image tokens, the images give {found}")
        if image_features is None or not found:
            return embeds
        return embeds.masked_scatter(at[..., None], image_features.to(embeds.dtype))

    def decode(
        self, embeds: Tensor, positions: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Hidden states ``[B, S, D]``; see the decoder's ``forward``."""
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
    ) -> Tensor:
        """Hidden states of whole rows; ``pixels``, as ``encode_images`` takes them, are in order of their placeholders.

        In training with other processes, the encoder and the connector run even if there is no image.
        """
        features = None if pixels is None or not len(pixels) else self.encode_images(pixels)
        embeds = self.embed(input_ids, features)
        if features is None and self.training and is_data_parallel():
            embeds = embeds + no_images(self)
        return self.decode(embeds, positions, mask)

    def forward_packed(
        self, rows: PackedRows, image_features: Tensor | None, layer_inputs: list[Tensor] | None = None
    ) -> Tensor:
        """Hidden states ``[T, D]`` of a flat batch; features (see ``embed``) as ``rows.images`` lists them.

        What each decoder layer reads ``[T, D]`` is appended to ``layer_inputs``.
        """
        embeds = self.embed(rows.input_ids, image_features)
        return self.decoder.forward_packed(embeds, rows.positions, rows.layout, layer_inputs)


def _check_layers(layers: Sequence[int], encoder: nn.Module, config: MllmConfig) -> None:
    """Raises ``InvalidArgumentError`` unless the encoder gives all ``layers``."""
    wanted = f"{config.connector['name']!r} reads layers {list(layers)}"
    if not isinstance(encoder, GivesLayers):
        raise invalid("model.connector", f"{wanted}, but encoder {config.encoder['name']!r} gives only its last")
    if max(layers) > encoder.num_layers:
        raise invalid("model.connector", f"{wanted}, but encoder {config.encoder['name']!r} has {encoder.num_layers}")


def count_parameters(module: nn.Module) -> int:
    """Number of weights, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
