"""Recognition from regions: each image token names the words said of the region it lies in.

A bag of words is predicted through the connector and the decoder's own embedding table, so nothing is added to the
model, and image tokens learn to look like the words they mean before the decoder first reads them. Captions with boxes
as a pre-training signal: MMGiC (arXiv 2412.05939); bag-of-words targets through the language model's head:
arXiv 2401.11248.
"""

# Shape suffixes: N images, T image tokens, D width, V vocabulary.

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.models.mllm import Mllm
from rebus.models.packing import PackedRegion
from rebus.objectives.base import MllmOutputs
from rebus.registry import register


@dataclass(frozen=True, kw_only=True)
class RegionWordsConfig:
    """Weights of the tokens."""

    # Weight of an image token that no region's centre lies in, against 1 for one that does. Such a token is to name
    # ``<image>``: nothing.
    background_weight: float = 0.2

    def __post_init__(self) -> None:
        if self.background_weight < 0:
            raise ValueError(f"background_weight={self.background_weight} must not be negative")


@register("objective", "region-words", config=RegionWordsConfig, paper="mmgic")
class RegionWords:
    """Cross-entropy between an image token's words and those said of its region, rarer words counting more."""

    needs_decoder = False

    def __init__(self, config: RegionWordsConfig) -> None:
        self._config = config

    def __call__(self, model: Mllm, outputs: MllmOutputs) -> Tensor:
        """Mean over image tokens of KL(target || predicted): 0 is reached when the words are named exactly."""
        features_NTD = outputs.image_features
        if features_NTD is None:
            return next(model.parameters()).new_zeros(())
        targets, found = self._targets(model, features_NTD, outputs.batch.rows.regions)
        logits = model.logits(model.decoder.norm(features_NTD)).float()
        losses_NT = F.kl_div(F.log_softmax(logits, dim=-1), targets, reduction="none").sum(-1)
        weights_NT = torch.where(found, 1.0, self._config.background_weight)
        return (losses_NT * weights_NT).sum() / weights_NT.sum()

    def _targets(self, model: Mllm, features_NTD: Tensor, regions: Sequence[PackedRegion]) -> tuple[Tensor, Tensor]:
        """Word distributions ``[N, T, V]`` and whether a region's centre lies in the token ``[N, T]``."""
        rarity = inverse_document_frequency([region.token_ids for region in regions])
        targets = features_NTD.new_zeros(*features_NTD.shape[:2], model.config.vocab_size)
        for region in regions:
            cell = cell_of(region.region, model.connector.grid)
            for token in set(region.token_ids):
                targets[region.image, cell, token] = rarity[token]
        found = targets.sum(-1) > 0
        targets[..., model.config.image_token_id] = torch.where(found, 0.0, 1.0)
        return targets / targets.sum(-1, keepdim=True), found


def cell_of(region: tuple[float, float, float, float], grid: tuple[int, int]) -> int:
    """Index of the grid cell (rows first) that holds the region's centre."""
    rows, columns = grid
    row = min(int((region[1] + region[3]) / 2 * rows), rows - 1)
    column = min(int((region[0] + region[2]) / 2 * columns), columns - 1)
    return row * columns + column


def inverse_document_frequency(phrases: Sequence[Sequence[int]]) -> dict[int, float]:
    """``log(phrases / phrases that hold the token)``: 0 for a token that every phrase holds."""
    counts = Counter(token for phrase in phrases for token in set(phrase))
    return {token: math.log(len(phrases) / count) for token, count in counts.items()}
