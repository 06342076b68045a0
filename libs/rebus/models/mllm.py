"""The multimodal language model: an image encoder, a connector and a decoder, each named by its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from rebus import registry
from rebus.data.encoding import EncodingConfig
from rebus.data.preprocess import ImageProcessorConfig, model_processor
from rebus.errors import invalid
from rebus.models.cache import KVCache
from rebus.models.causal_lm import SpecialTokens
from rebus.models.connectors.base import GivesLayers, ReadsLayers
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
        processor = model_processor(
            config.preprocess, image_size=self.vision_encoder.image_size, digest=config.preprocess_digest
        )
        self.config = config = dataclasses.replace(config, preprocess_digest=processor.digest)
        self.decoder = registry.build("decoder", config.decoder, field="model.decoder", vocab_size=config.vocab_size)
        self.connector = registry.build(
            "connector",
            config.connector,
            field="model.connector",
            width_in=self.vision_encoder.width,
            width_out=self.decoder.config.width,
            grid=self.vision_encoder.grid,
        )
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

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Decoder embeddings ``[N, image_tokens, D]`` of normalised images ``[N, 3, H, W]``."""
        return self.connector(self.image_features(pixels))

    def image_features(self, pixels: Tensor) -> Tensor | list[Tensor]:
        """Features ``[N, T, width]`` of the encoder's last layer, or of each layer that the connector reads."""
        if isinstance(self.connector, ReadsLayers):
            return self.vision_encoder.forward_layers(pixels, self.connector.feature_layers)
        return self.vision_encoder(pixels)

    def embed(self, input_ids: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Embeddings ``[..., D]`` of ``input_ids`` ``[...]``, image placeholders filled in order.

        Raises ``InvalidArgumentError`` where placeholders and features ``[N, image_tokens, D]`` do not match in number.
        """
        embeds = self.decoder.embed_tokens(input_ids)
        at = input_ids == self.config.image_token_id
        found = 0 if image_features is None else image_features.shape[0] * image_features.shape[1]
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
        self, input_ids: Tensor, positions: Tensor, mask: Tensor | None = None, pixels: Tensor | None = None
    ) -> Tensor:
        """Hidden states of whole rows; ``pixels`` ``[N, 3, H, W]`` holds the images in order of their placeholders.

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
        """Hidden states ``[T, D]`` of a flat batch; features ``[N, image_tokens, D]`` as ``rows.images`` lists them.

        What each decoder layer reads ``[T, D]`` is appended to ``layer_inputs``.
        """
        embeds = self.embed(rows.input_ids, image_features)
        return self.decoder.forward_packed(embeds, rows.positions, rows.layout, layer_inputs)


def _check_layers(layers: Sequence[int], encoder: nn.Module, config: MllmConfig) -> None:
    """Raises ``InvalidArgumentError`` unless the encoder gives all ``layers``."""
    wanted = f"{config.connector['name']!r} reads layers {list(layers)}"
    if not isinstance(encoder, GivesLayers):
        raise invalid("model.connector", f"{wanted}, but encoder {config.encoder['name']!r} gives only its last")
    # An encoder may leave unsaid how deep it is; then its first forward pass refuses what it has not.
    depth: int | None = getattr(encoder, "num_layers", None)
    if depth is not None and max(layers) > depth:
        raise invalid("model.connector", f"{wanted}, but encoder {config.encoder['name']!r} has {depth}")


def count_parameters(module: nn.Module) -> int:
    """Number of weights, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
