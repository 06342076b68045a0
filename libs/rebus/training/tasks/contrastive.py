"""Trains a dual encoder on images and their captions, over cached features of the frozen image encoder."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rebus import registry
from rebus.data.stream import Step, StreamState, by_source
from rebus.errors import invalid
from rebus.models import feature_cache
from rebus.models.dual_encoder import DualEncoder, DualEncoderConfig
from rebus.models.encoders.base import Pretrained
from rebus.models.feature_cache import FeatureKey
from rebus.models.io import save_model
from rebus.models.text_encoders.base import TokenIds
from rebus.objectives.contrastive import PairObjective, Pairs
from rebus.registry import register
from rebus.training.captions import captioned_rows, counted, draw
from rebus.training.draws import stage_key, stage_steps
from rebus.training.recipe import Stage, mixer_of
from rebus.training.task import Batch, Consumed, Rewards, SampleSource, StepOutput, TaskContext

# Name, weight, loss.
WeightedObjective = tuple[str, float, PairObjective]


@dataclass(frozen=True, kw_only=True)
class ContrastiveTaskConfig:
    """The model and which captions it learns from."""

    model: DualEncoderConfig = field(default_factory=DualEncoderConfig)
    # How often a caption of a language is drawn, relative to the image's other captions; languages not named have 1.
    language_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(weight < 0 for weight in self.language_weights.values()):
            raise ValueError(f"language_weights must be >= 0, got {self.language_weights}")


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """The input of one step: B images and one caption of each."""

    # float32 [B, pooled width]
    features: Tensor
    tokens: Sequence[TokenIds]
    # bool [B, B], see ``Pairs.counted``
    counted: Tensor


@register("task", "contrastive", config=ContrastiveTaskConfig)
class ContrastiveTask:
    """Image-text pairs drawn from a weighted mixture, one caption an image and step, in-batch negatives."""

    def __init__(self, config: ContrastiveTaskConfig) -> None:
        self._config = config
        self._objectives: dict[str, list[WeightedObjective]] = {}

    def prepare(self, context: TaskContext) -> DualEncoder:
        """Computes or fetches the image features, tokenizes the captions and builds the model."""
        torch.manual_seed(context.seed)
        model = DualEncoder(self._config.model)
        if not isinstance(model.vision_encoder, Pretrained):
            raise invalid(
                "recipe.task.model.vision_encoder.name",
                f"{self._config.model.vision_encoder.get('name')!r} has no published weights, so it cannot stay frozen",
            )
        model.vision_encoder.load_pretrained()
        self._seed = context.seed
        self._pairs = {
            name: _read_pairs(name, source, context, model, self._config.language_weights)
            for name, source in context.sources.items()
        }
        model.image_head.fit(torch.cat([pairs.features for pairs in self._pairs.values()]))
        return model

    def parts(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """All that is trained; the image encoder is none of them, since only its features are at hand."""
        assert isinstance(model, DualEncoder)
        return {
            "image_head": model.image_head,
            "text_encoder": model.text_encoder,  # pyright: ignore[reportReturnType]
            "text_head": model.text_head,
            "calibration": model.calibration,
        }

    def batches(self, stage: Stage, state: StreamState, rewards: Rewards) -> Iterator[Batch]:
        """Draws images, and of each one caption; raises what ``check_pair_stage`` raises."""
        sizes = {name: len(pairs.captions) for name, pairs in self._pairs.items()}
        check_pair_stage(stage, sizes)
        for step in stage_steps(stage, sizes, seed=self._seed, state=state, rewards=rewards):
            yield self._batch(stage, step)

    def _batch(self, stage: Stage, step: Step) -> Batch:
        features: list[Tensor] = []
        tokens: list[TokenIds] = []
        families: list[str] = []
        consumed: dict[str, Consumed] = {}
        for source, samples in by_source(step.samples).items():
            rows = [sample.row for sample in samples]
            pairs = self._pairs[source]
            rng = np.random.default_rng(
                [*stage_key(self._seed, stage), zlib.crc32(source.encode()), step.state.step - 1]
            )
            drawn = [draw(pairs.captions[row], pairs.odds[row], rng) for row in rows]
            features.append(pairs.features[torch.tensor(rows)])
            tokens += drawn
            families += [pairs.families[row] for row in rows]
            consumed[source] = Consumed(
                samples=len(rows), images=len(rows), tokens=sum(len(caption) for caption in drawn)
            )
        data = PairBatch(features=torch.cat(features), tokens=tokens, counted=counted(families))
        return Batch(
            data=data, num_bytes=data.features.nbytes, consumed=consumed, samples=step.samples, stream=step.state
        )

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> StepOutput:
        """The stage's objectives over one embedding of both sides."""
        assert isinstance(model, DualEncoder)
        data: PairBatch = batch.data
        device = model.calibration.logit_scale.device
        pairs = Pairs(
            images=model.embed_features(data.features.to(device)),
            texts=model.embed_tokens(data.tokens),
            scale=model.calibration.scale(),
            bias=model.calibration.logit_bias,
            counted=data.counted.to(device),
        )
        objectives = self._stage_objectives(stage)
        losses = {name: objective.over_pairs(pairs) for name, _, objective in objectives}
        total = sum((weight * losses[name] for name, weight, _ in objectives), start=torch.zeros((), device=device))
        metrics: dict[str, Tensor | float] = {f"loss/{name}": value.detach() for name, value in losses.items()}
        return StepOutput(loss=total, metrics={**metrics, "logit_scale": pairs.scale.detach()})

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes ``config.json``, ``model.md`` and ``model.safetensors``, the frozen encoder's weights included."""
        save_model(model, folder)

    def _stage_objectives(self, stage: Stage) -> list[WeightedObjective]:
        if stage.name not in self._objectives:
            self._objectives[stage.name] = pair_objectives(stage)
        return self._objectives[stage.name]


def pair_objectives(stage: Stage) -> list[WeightedObjective]:
    """The stage's objectives over pairs, built; ``InvalidArgumentError`` for one that is none."""
    built: list[WeightedObjective] = []
    for spec in stage.objectives or [{"name": "contrastive"}]:
        objective = registry.build("objective", {k: v for k, v in spec.items() if k != "weight"})
        if not isinstance(objective, PairObjective):
            raise invalid(f"recipe.stages.{stage.name}.objectives", f"{spec['name']!r} is not a loss of pairs")
        built.append((str(spec["name"]), float(spec.get("weight", 1.0)), objective))
    return built


def check_pair_stage(stage: Stage, sizes: Mapping[str, int]) -> None:
    """``InvalidArgumentError`` for packing and for a mixer that learns.

    Pairs are no sequences, and a loss over all pairs of a batch is no source's own.
    """
    where = f"recipe.stages.{stage.name}"
    if stage.pack is not None:
        raise invalid(f"{where}.pack", "pairs of images and captions are not packed")
    if mixer_of(stage, sizes, key=()).learns:
        raise invalid(f"{where}.mixer.name", f"{stage.mixer['name']!r} needs a loss by source, pairs have none")


@dataclass(frozen=True, kw_only=True)
class _SourcePairs:
    """One source, held whole: what a step reads is small, since images are features and captions are ids."""

    # float32 [N, pooled width]
    features: Tensor
    # Of each image, its captions and the odds with which each is drawn.
    captions: Sequence[Sequence[TokenIds]]
    odds: Sequence[NDArray[np.float64]]
    families: Sequence[str]


def _read_pairs(
    name: str, source: SampleSource, context: TaskContext, model: DualEncoder, language_weights: Mapping[str, float]
) -> _SourcePairs:
    """Captions and features of every row that has an image and a caption that may be drawn."""
    found = captioned_rows(name, source, context, language_weights)
    return _SourcePairs(
        features=_features(name, source, found.indices, context, model),
        captions=[model.text_encoder.tokenize(told) for told in found.captions],
        odds=found.odds,
        families=found.families,
    )


def _features(
    name: str, source: SampleSource, indices: NDArray[np.int64], context: TaskContext, model: DualEncoder
) -> Tensor:
    """Features of the first image of each of the source's samples at ``indices``."""
    rows = source.rows[indices]

    def take_images(wanted: Sequence[int]) -> list[bytes]:
        samples = source.take(indices[np.searchsorted(rows, wanted)].tolist())
        return [image for sample in samples if (image := sample.first_image) is not None]

    key = FeatureKey(
        dataset=context.versions[name],
        encoder=feature_cache.module_digest(model.vision_encoder),
        preprocess=model.processor.digest,
    )
    features = feature_cache.cached_features(
        context.cache_dir,
        key,
        rows,
        take_images,
        model.vision_encoder,
        model.processor,
        progress=lambda done, total: context.progress(f"features of {name}: {done} of {total} images"),
    )
    return features.take(np.arange(len(features)))
