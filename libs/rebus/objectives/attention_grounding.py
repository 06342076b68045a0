"""Supervised attention: before it answers, a question looks at what it asks about.

Some heads of one layer are taught to attend from the token that the answer follows to the image tokens that show the
objects the question names, or to the row's first token where there is no such object. Whether something is there, and
what it is like, is then read off what those heads bring; without the hint a small decoder finds this way of looking
late or never. Attention supervision in visual question answering: arXiv 1709.06308 (Qiao et al., 2018); supervised
attention heads in transformers: arXiv 1809.05053 (Strubell et al., 2018).
"""

# Shape suffixes: Q questions, N heads, C candidates: the row's first token, then the image's tokens.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.errors import invalid
from rebus.models.mllm import Mllm
from rebus.objectives.base import MllmOutputs
from rebus.objectives.region_words import cell_of
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class AttentionGroundingConfig:
    """Which heads are taught."""

    # Index of the decoder layer. Layers below it gather what is asked, layers above it use what was found.
    layer: int = 2
    # ``num_heads`` heads of the layer, from ``first_head`` on.
    first_head: int = 0
    num_heads: int = 2

    def __post_init__(self) -> None:
        if min(self.layer, self.first_head) < 0 or self.num_heads < 1:
            found = f"layer={self.layer}, first_head={self.first_head}, num_heads={self.num_heads}"
            raise ValueError(f"need layer >= 0, first_head >= 0 and num_heads >= 1, got {found}")


@register("objective", "attention-grounding", config=AttentionGroundingConfig)
class AttentionGrounding:
    """Cross-entropy between where a question's heads look and where the objects are that it names."""

    needs_decoder = True

    def __init__(self, config: AttentionGroundingConfig) -> None:
        self._config = config

    def __call__(self, model: Mllm, outputs: MllmOutputs) -> Tensor:
        """Mean over questions and heads; questions of which it is not known what they name do not count."""
        size, grid = model.image_tokens, model.image_grid
        rows = outputs.batch.rows
        if model.config.cross_attention is not None:
            raise invalid("attention-grounding", "images are read by cross_attention; no token of the text shows them")
        heads = slice(self._config.first_head, self._config.first_head + self._config.num_heads)
        if self._config.layer >= len(outputs.layer_inputs) or heads.stop > model.decoder.config.num_heads:
            config = model.decoder.config
            found = f"{config.num_layers} layers of {config.num_heads} heads"
            raise invalid("attention-grounding", f"{self._config} does not fit a decoder of {found}")
        if not rows.references:
            return outputs.layer_inputs[0].new_zeros(())
        keys_QC = torch.tensor([[r.sink, *range(r.image, r.image + size)] for r in rows.references])
        queries_Q = torch.tensor([r.query for r in rows.references])
        targets_QC = torch.zeros(len(rows.references), 1 + size)
        for target_C, reference in zip(targets_QC, rows.references, strict=True):
            cells = {1 + cell_of(region, grid) for region in reference.regions} or {0}
            target_C[list(cells)] = 1 / len(cells)
        inputs_TD = outputs.layer_inputs[self._config.layer]
        device = inputs_TD.device
        scores_QNC = model.decoder.attention_scores(
            self._config.layer, inputs_TD, rows.positions, queries_Q.to(device), keys_QC.to(device)
        )
        log_weights_QNC = F.log_softmax(scores_QNC[:, heads].float(), dim=-1)
        return -(targets_QC.to(device)[:, None] * log_weights_QNC).sum(-1).mean()
