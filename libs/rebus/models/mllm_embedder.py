"""A multimodal language model as an embedder: images and texts are rows, and a head makes a vector of each.

As in E5-V (arXiv 2407.12580) and VLM2Vec (2410.05160): both sides pass one decoder, behind an instruction each, and
the open turn of the assistant is the last token, which has read everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebus import registry
from rebus.data.encoding import Encoder, Row
from rebus.data.sample import Segment
from rebus.data.tokenizer import Tokenizer
from rebus.errors import invalid
from rebus.models.dual_encoder import Calibration
from rebus.models.embedding_heads.multi_vector import MultiVectorHead
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.packing import PackedRows
from rebus.registry import Spec


@dataclass(frozen=True, kw_only=True)
class MllmEmbedderConfig:
    """The model, the head, and what is said to the model."""

    mllm: MllmConfig
    head: Spec = registry.component("embedding-head", "last-token")
    # Behind an image and behind a text, E5-V's; empty: nothing is said.
    image_instruction: str = "Summary above image in one word:"
    text_instruction: str = "Summary above sentence in one word:"
    # Beginnings of a vector that are trained to be embeddings themselves (Matryoshka).
    matryoshka_widths: tuple[int, ...] = ()
    # Factor of the cosines before the loss: where learning starts, and its bound.
    initial_logit_scale: float = 1 / 0.07
    max_logit_scale: float = 100.0
    # Added to the cosines by the sigmoid loss: where learning starts.
    initial_logit_bias: float = -10.0

    def __post_init__(self) -> None:
        if not 0 < self.initial_logit_scale <= self.max_logit_scale:
            raise ValueError(
                f"need 0 < initial_logit_scale={self.initial_logit_scale} <= max_logit_scale={self.max_logit_scale}"
            )


class MllmEmbedder(nn.Module):
    """Unit vectors ``[R, width]`` of rows; their dot products are cosines."""

    def __init__(self, config: MllmEmbedderConfig, mllm: Mllm | None = None) -> None:
        """Around ``mllm`` where it is there already, else around a new one of ``config.mllm``."""
        super().__init__()
        self.mllm = Mllm(config.mllm) if mllm is None else mllm
        self.config = dataclasses.replace(config, mllm=self.mllm.config)
        self.head = registry.build(
            "embedding-head", config.head, field="model.head", width_in=self.mllm.decoder.config.width
        )
        if isinstance(self.head, MultiVectorHead):
            raise invalid("model.head.name", "'multi-vector' gives every token a vector; rows are compared by one each")
        if bad := [width for width in config.matryoshka_widths if not 1 <= width < self.width]:
            raise invalid("model.matryoshka_widths", f"{bad} are not within 1..{self.width - 1}")
        self.calibration = Calibration(config)

    @property
    def width(self) -> int:
        """Dimensions of an embedding."""
        return self.head.width

    def forward(self, rows: PackedRows, pixels: Tensor) -> Tensor:
        """Unit vectors ``[R, width]`` of the R rows; normalised images ``[N, 3, H, W]`` as ``rows.images`` lists them.

        Rows have no branches: of those, the last token is no input.
        """
        features = self.mllm.encode_images(pixels) if len(pixels) else None
        hidden = self.mllm.forward_packed(rows, features)
        documents = torch.from_numpy(rows.origins[:, 0].copy())
        return self.head.forward_packed(hidden, documents.to(hidden.device), int(documents.max()) + 1)


class EmbeddingRows:
    """Images and texts as the rows that a model was trained to embed."""

    def __init__(self, config: MllmEmbedderConfig, tokenizer: Tokenizer, *, image_tokens: int) -> None:
        self._config = config
        self._encoder = Encoder(tokenizer, image_tokens=image_tokens, config=config.mllm.encoding)

    def image(self) -> Row:
        """The row of any image, its first and only medium."""
        return self._row([Segment(type="image", media=0)], self._config.image_instruction)

    def text(self, text: str) -> Row:
        """The row of a text; ``InvalidArgumentError`` for one that is longer than the model's rows."""
        return self._row([Segment(text=text)], self._config.text_instruction)

    def _row(self, segments: Sequence[Segment], instruction: str) -> Row:
        said = [Segment(text=instruction)] if instruction else []
        return self._encoder.encode_prompt([*segments, *said])
