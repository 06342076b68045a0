"""Next-token prediction, with logits computed where a label stands and nowhere else."""

# Shape suffixes: T tokens, D width, M labelled tokens, V vocabulary.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.data.encoding import IGNORE_INDEX
from rebus.models.mllm import Mllm
from rebus.models.packing import PackedRows
from rebus.objectives.base import MllmOutputs
from rebus.objectives.linear_cross_entropy import linear_cross_entropy
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class LanguageModelingConfig:
    """How tokens are weighted and how many logits exist at once."""

    # A branch of x labelled tokens weighs x ("token"), sqrt(x) ("square", InternVL) or 1 ("branch").
    averaging: Literal["token", "square", "branch"] = "token"
    # Labelled tokens whose logits are held at once; more are computed chunk by chunk, each with its gradient.
    chunk_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens={self.chunk_tokens} must be at least 1")


@register("objective", "language-modeling", config=LanguageModelingConfig, paper="mm1")
class LanguageModeling:
    """Mean cross-entropy of the labelled tokens, each predicted from the token before it."""

    needs_decoder = True

    def __init__(self, config: LanguageModelingConfig) -> None:
        self._config = config

    def __call__(self, model: Mllm, outputs: MllmOutputs) -> Tensor:
        """The weighted mean; a batch without labels gives 0 with a graph behind it."""
        assert outputs.hidden_states is not None
        rows = outputs.batch.rows
        at_M = torch.nonzero(rows.targets != IGNORE_INDEX)[:, 0]
        hidden_MD = outputs.hidden_states.index_select(0, at_M)
        labels_M = rows.targets[at_M]
        if not len(labels_M):
            return hidden_MD.sum()
        weights_M = self._weights(rows.runs[at_M])
        if len(labels_M) <= self._config.chunk_tokens:
            losses_M = F.cross_entropy(model.logits(hidden_MD).float(), labels_M, reduction="none")
            total = (losses_M * weights_M).sum()
        else:
            table_VD = model.decoder.head_weight
            total = linear_cross_entropy(
                hidden_MD, table_VD, labels_M, weights_M, chunk_tokens=self._config.chunk_tokens
            )
        return total / weights_M.sum()

    def _weights(self, runs_M: Tensor) -> Tensor:
        """One weight a labelled token, ``[M]``: ``x ** -p`` for one of a run of x labelled tokens."""
        power = {"token": 0.0, "square": 0.5, "branch": 1.0}[self._config.averaging]
        return torch.bincount(runs_M)[runs_M].float() ** -power


@torch.no_grad()
def document_losses(model: Mllm, hidden_TD: Tensor, rows: PackedRows, *, chunk_tokens: int = 4096) -> dict[int, float]:
    """Mean loss of the labelled tokens of each row of the batch, by row; rows without labels are left out."""
    at_T = torch.nonzero(rows.targets != IGNORE_INDEX)[:, 0]
    losses = [
        F.cross_entropy(model.logits(hidden_TD[at_M]).float(), rows.targets[at_M], reduction="none")
        for at_M in at_T.split(chunk_tokens)
    ]
    owners = rows.origins[at_T.numpy(), 0]
    sums = np.bincount(owners, weights=torch.cat(losses).double().numpy())
    counts = np.bincount(owners)
    return {int(row): float(sums[row] / counts[row]) for row in np.flatnonzero(counts)}
