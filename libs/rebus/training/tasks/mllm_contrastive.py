"""Trains a multimodal language model to embed: images and their captions are rows, and each pair of them a positive."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from rebus import registry
from rebus.data.encoding import Row
from rebus.data.loader import load_samples
from rebus.data.preprocess import ImageProcessor
from rebus.data.sample import Sample
from rebus.data.stream import Step, StreamState, by_source
from rebus.errors import invalid
from rebus.models.embedding_heads.matryoshka import matryoshka
from rebus.models.io import save_model
from rebus.models.mllm_embedder import EmbeddingRows, MllmEmbedder, MllmEmbedderConfig
from rebus.models.moe import peek_routing, take_routing
from rebus.models.packing import PackedRows, pack_rows
from rebus.objectives.contrastive import Pairs
from rebus.registry import Spec, register
from rebus.training.captions import captioned_rows, counted, draw
from rebus.training.draws import stage_key, stage_steps
from rebus.training.recipe import Stage
from rebus.training.task import Batch, Consumed, Rewards, StepOutput, TaskContext
from rebus.training.tasks.contrastive import WeightedObjective, check_pair_stage, pair_objectives
from rebus.training.tasks.mllm_start import STARTABLE
from rebus.training.tasks.new_mllm import NewMllmConfig, mllm_parts, new_mllm


@dataclass(frozen=True, kw_only=True)
class MllmContrastiveTaskConfig(NewMllmConfig):
    """The model, its head, and which captions it learns from; see ``MllmEmbedderConfig``."""

    head: Spec = registry.component("embedding-head", "last-token")
    image_instruction: str = MllmEmbedderConfig.image_instruction
    text_instruction: str = MllmEmbedderConfig.text_instruction
    # The loss is the mean over these beginnings of the vectors and the whole ones.
    matryoshka_widths: tuple[int, ...] = ()
    # Rows embedded at once; the backward pass embeds each chunk again, so that memory does not grow with the batch
    # (GradCache, arXiv 2101.06983). 0: all at once.
    chunk_rows: int = 0
    # How often a caption of a language is drawn, relative to the image's other captions; languages not named have 1.
    language_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.chunk_rows < 0:
            raise ValueError(f"chunk_rows={self.chunk_rows} must not be negative")
        if any(weight < 0 for weight in self.language_weights.values()):
            raise ValueError(f"language_weights must be >= 0, got {self.language_weights}")
        if self.media is not None or not self.preprocess.is_square:
            raise ValueError("an embedder's images are one square each: expected no media, and a resize to squares")


@dataclass(frozen=True, kw_only=True)
class RowPairs:
    """The input of one step: B rows of an image, then B rows of a caption of each, in chunks."""

    # Rows, and their images float32 [N, 3, H, W] in the order of ``rows.images``.
    chunks: Sequence[tuple[PackedRows, Tensor]]
    # bool [B, B], see ``Pairs.counted``
    counted: Tensor


@register("task", "mllm-contrastive", config=MllmContrastiveTaskConfig, paper="vlm2vec")
class MllmContrastiveTask:
    """Image-text pairs drawn from a weighted mixture, both sides through one decoder, in-batch negatives."""

    startable = STARTABLE

    def __init__(self, config: MllmContrastiveTaskConfig) -> None:
        self._config = config
        self._objectives: dict[str, list[WeightedObjective]] = {}

    def prepare(self, context: TaskContext) -> MllmEmbedder:
        """Builds the model as the ``mllm`` task does, puts the head on it, and reads the captions."""
        self._seed, self._sources = context.seed, context.sources
        mllm, self._tokenizer, self._config = new_mllm(self._config, context)
        model = MllmEmbedder(
            MllmEmbedderConfig(
                mllm=mllm.config,
                head=self._config.head,
                image_instruction=self._config.image_instruction,
                text_instruction=self._config.text_instruction,
                matryoshka_widths=self._config.matryoshka_widths,
            ),
            mllm,
        )
        self._processor = ImageProcessor(self._config.preprocess)
        self._rows = EmbeddingRows(model.config, self._tokenizer, image_tokens=mllm.image_tokens)
        self._captioned = {
            name: captioned_rows(name, source, context, self._config.language_weights)
            for name, source in context.sources.items()
        }
        return model

    def parts(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """Those of the ``mllm`` task (see ``mllm_parts``), the head, and how cosines become logits."""
        assert isinstance(model, MllmEmbedder)
        return {**mllm_parts(model.mllm), "head": model.head, "calibration": model.calibration}

    def batches(self, stage: Stage, state: StreamState, rewards: Rewards) -> Iterator[Batch]:
        """Draws images, and of each one caption; raises what ``check_pair_stage`` raises."""
        sizes = {name: len(rows) for name, rows in self._captioned.items()}
        check_pair_stage(stage, sizes)
        for step in stage_steps(stage, sizes, seed=self._seed, state=state, rewards=rewards):
            yield self._batch(stage, step)

    def _batch(self, stage: Stage, step: Step) -> Batch:
        images: list[NDArray[np.uint8]] = []
        texts: list[Row] = []
        families: list[str] = []
        consumed: dict[str, Consumed] = {}
        image_row = self._rows.image()
        for source, samples in by_source(step.samples).items():
            rows, found = [sample.row for sample in samples], self._captioned[source]
            rng = np.random.default_rng(
                [*stage_key(self._seed, stage), zlib.crc32(source.encode()), step.state.step - 1]
            )
            images += load_samples(
                self._sources[source], found.indices[rows].tolist(), self._pixels, size=lambda pixels: pixels.nbytes
            )
            told = [self._rows.text(draw(found.captions[row], found.odds[row], rng)) for row in rows]
            texts += told
            families += [found.families[row] for row in rows]
            num_tokens = sum(len(row) for row in told) + len(rows) * len(image_row)
            consumed[source] = Consumed(samples=len(rows), images=len(rows), tokens=num_tokens)
        chunks = list(self._chunks([image_row] * len(images) + texts, images))
        return Batch(
            data=RowPairs(chunks=chunks, counted=counted(families)),
            num_bytes=sum(pixels.nbytes for _, pixels in chunks),
            consumed=consumed,
            samples=step.samples,
            stream=step.state,
        )

    def _chunks(self, rows: Sequence[Row], images: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[PackedRows, Tensor]]:
        """The rows, the first of which are of the ``images``, some at a time."""
        size, side = self._config.chunk_rows or len(rows), self._config.preprocess.image_size
        for start in range(0, len(rows), size):
            packed = pack_rows(rows[start : start + size], image_token_id=self._tokenizer.image_token_id)
            shown = [images[start + row] for row, _ in packed.images]
            pixels = self._processor.normalise(np.stack(shown)) if shown else np.zeros((0, 3, side, side), np.float32)
            yield packed, torch.from_numpy(pixels)

    def _pixels(self, sample: Sample) -> NDArray[np.uint8]:
        image = sample.first_image
        assert image is not None  # ``captioned_rows`` leaves out those that have none
        return self._processor(image, field=f"sample[{sample.id}].media")

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> StepOutput:
        """The stage's objectives, the mean over whole vectors and the beginnings that are trained too."""
        assert isinstance(model, MllmEmbedder)
        data: RowPairs = batch.data
        vectors, scale = _embedded(model, data.chunks), model.calibration.scale()
        routings = peek_routing(model)
        take_routing(model)  # the layers must not keep the step's graph
        cut = [vectors, *matryoshka(vectors, self._config.matryoshka_widths)]
        pairs = [
            Pairs(images=images, texts=texts, scale=scale, bias=model.calibration.logit_bias, counted=data.counted)
            for images, texts in (each.chunk(2) for each in cut)
        ]
        if stage.name not in self._objectives:
            self._objectives[stage.name] = pair_objectives(stage)
        objectives = self._objectives[stage.name]
        losses = {name: torch.stack([loss.over_pairs(each) for each in pairs]).mean() for name, _, loss in objectives}
        total = sum((weight * losses[name] for name, weight, _ in objectives), start=torch.zeros(()))
        metrics: dict[str, Tensor | float] = {f"loss/{name}": value.detach() for name, value in losses.items()}
        metrics["logit_scale"] = scale.detach()
        return StepOutput(loss=total, metrics=metrics, routings=routings)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes ``config.json``, ``model.safetensors``, ``model.md`` and ``tokenizer.json``."""
        save_model(model, folder)
        self._tokenizer.save(folder)


def _embedded(model: MllmEmbedder, chunks: Sequence[tuple[PackedRows, Tensor]]) -> Tensor:
    """Unit vectors of all chunks' rows; of several chunks, activations are kept of none."""
    if len(chunks) == 1:
        return model(*chunks[0])
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        raise invalid("recipe.task.chunk_rows", "the encoder learns batch statistics, which would be those of a chunk")
    found = [checkpoint(model, rows, pixels, use_reentrant=False) for rows, pixels in chunks]
    return torch.cat(cast(list[Tensor], found))
