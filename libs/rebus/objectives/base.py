"""What objectives of the multimodal language model read, and what they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rebus.models.media import MediaBatch
from rebus.models.mllm import Mllm
from rebus.models.packing import PackedRows


@dataclass(frozen=True, kw_only=True)
class MllmBatch:
    """The input of one step."""

    rows: PackedRows
    # In the order of ``rows.images``.
    media: MediaBatch


@dataclass(frozen=True, kw_only=True)
class MllmOutputs:
    """One forward pass, shared by all objectives of a step."""

    batch: MllmBatch
    # [N, image_tokens, D] where all media are images of one square, else [tokens, D]; None where there are none.
    # Who needs to know which token shows what asks ``Mllm.image_grid``, which refuses models that split images.
    image_features: Tensor | None
    # [T, D]; None where no objective of the stage needs the decoder
    hidden_states: Tensor | None
    # [T, D] a decoder layer: what it reads; empty where the decoder was skipped
    layer_inputs: Sequence[Tensor] = ()


class Objective(Protocol):
    """A loss of the multimodal language model, built by its config alone."""

    # Whether ``hidden_states`` must be there; a stage of objectives that need none skips the decoder.
    needs_decoder: bool

    def __call__(self, model: Mllm, outputs: MllmOutputs) -> Tensor:
        """The scalar loss."""
        ...
