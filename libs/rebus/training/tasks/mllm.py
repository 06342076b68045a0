"""Trains the multimodal language model: captions, interleaved documents, text and questions are all rows to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rebus import registry
from rebus.data.encoding import Encoder, EncodingConfig, Row
from rebus.data.loader import load_samples
from rebus.data.mixers import odm
from rebus.data.preprocess.reading import MediaReader, Medium
from rebus.data.sample import Sample
from rebus.data.stream import Drawn, PackConfig, Size, Step, StreamState, by_source
from rebus.errors import invalid
from rebus.models.io import save_model
from rebus.models.media import collate, encoder_of, reader_of
from rebus.models.mllm import Mllm
from rebus.models.moe import peek_routing, take_routing
from rebus.models.packing import pack_rows
from rebus.objectives.base import MllmBatch, MllmOutputs, Objective
from rebus.objectives.language_modeling import document_losses
from rebus.registry import register
from rebus.training.draws import stage_steps
from rebus.training.recipe import Stage, mixer_of
from rebus.training.task import Batch, Consumed, Rewards, SampleSource, StepOutput, TaskContext
from rebus.training.tasks.mllm_start import STARTABLE
from rebus.training.tasks.new_mllm import NewMllmConfig, mllm_parts, new_mllm


@dataclass(frozen=True, kw_only=True)
class MllmTaskConfig(NewMllmConfig):
    """The model and how its data is prepared."""

    # Memory for rows kept decoded and encoded; beyond it rows are prepared anew each time they are drawn.
    cache_mib: int = 1024

    def __post_init__(self) -> None:
        if self.cache_mib < 0:
            raise ValueError(f"cache_mib={self.cache_mib} must not be negative")


@register("task", "mllm", config=MllmTaskConfig, paper="mm1")
class MllmTask:
    """Rows drawn from a weighted mixture, packed without padding, under any objectives of the registry."""

    startable = STARTABLE

    def __init__(self, config: MllmTaskConfig) -> None:
        self._config = config
        self._objectives: dict[str, list[tuple[str, float, Objective]]] = {}

    def prepare(self, context: TaskContext) -> Mllm:
        """Trains (or, on resume, loads) the tokenizer and builds the model, its encoder with its published weights.

        Parts that the recipe takes from other models come with theirs, the decoder with its tokenizer.
        """
        self._context = context
        model, tokenizer, self._config = new_mllm(self._config, context)
        self._tokenizer = tokenizer
        self._reader = reader_of(model)
        encoder = encoder_of(model, tokenizer)
        self._rows = {
            name: _PreparedRows(source, context.recipe.data[name].tasks, encoder, self._reader)
            for name, source in context.sources.items()
        }
        self._budget = _Budget(self._config.cache_mib << 20)
        return model

    def parts(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """See ``mllm_parts``."""
        assert isinstance(model, Mllm)
        return mllm_parts(model)

    def batches(self, stage: Stage, state: StreamState, rewards: Rewards) -> Iterator[Batch]:
        """Draws, packs and normalises the rows of each step.

        Raises ``InvalidArgumentError`` for packs that cannot hold every row, and for a mixer that learns from losses
        in a stage that computes none.
        """
        self._check_stage(stage)
        loader = _Loader(self._rows, self._budget)
        sizes = {name: len(rows.source) for name, rows in self._rows.items()}
        steps = stage_steps(stage, sizes, seed=self._context.seed, state=state, rewards=rewards, measure=loader.measure)
        for step in steps:
            yield self._batch(step, loader.take(step.samples))

    def _batch(self, step: Step, items: Sequence[_Prepared]) -> Batch:
        packed = pack_rows([item.row for item in items], image_token_id=self._tokenizer.image_token_id)
        media = collate([items[row].media[index] for row, index in packed.images], self._reader.processor)
        return Batch(
            data=MllmBatch(rows=packed, media=media),
            num_bytes=media.num_bytes,  # beside which tokens are little
            consumed=_consumed(step.samples, items),
            samples=step.samples,
            stream=step.state,
        )

    def _check_stage(self, stage: Stage) -> None:
        where, bounds = f"recipe.stages.{stage.name}", self._config.encoding
        if stage.pack is not None and not _holds(stage.pack, bounds):
            raise invalid(
                f"{where}.pack",
                f"max_tokens={stage.pack.max_tokens} and max_images={stage.pack.max_images} are below the bounds of a "
                f"row, {bounds.max_length_tokens} and {bounds.max_images} (recipe.task.encoding)",
            )
        decoded = any(objective.needs_decoder for _, _, objective in self._stage_objectives(stage))
        if self._learns(stage) and not decoded:
            raise invalid(
                f"{where}.mixer.name", f"{stage.mixer['name']!r} learns from the decoder's loss, which is off"
            )

    def _rewards(self, model: Mllm, hidden: Tensor | None, batch: Batch, stage: Stage) -> dict[str, float]:
        """What the stage's mixer learns: the language-modeling loss of each row."""
        if hidden is None or not self._learns(stage):
            return {}
        return odm.rewards(document_losses(model, hidden.detach(), batch.data.rows), batch.samples)

    def _learns(self, stage: Stage) -> bool:
        return mixer_of(stage, dict.fromkeys(self._rows, 1), key=()).learns

    def loss(self, model: nn.Module, batch: Batch, stage: Stage) -> StepOutput:
        """One shared forward pass; the decoder is skipped where no objective reads it."""
        assert isinstance(model, Mllm)
        objectives = self._stage_objectives(stage)
        data: MllmBatch = batch.data
        features = model.encode_media(data.media)
        decoded = any(objective.needs_decoder for _, _, objective in objectives)
        layer_inputs: list[Tensor] = []
        hidden = model.forward_packed(data.rows, features, layer_inputs) if decoded else None
        outputs = MllmOutputs(batch=data, image_features=features, hidden_states=hidden, layer_inputs=layer_inputs)
        routings = peek_routing(model)
        losses = {name: objective(model, outputs) for name, _, objective in objectives}
        take_routing(model)  # what no objective read must not keep the step's graph, nor be taken for the next one's
        total = sum((weight * losses[name] for name, weight, _ in objectives), start=torch.zeros(()))
        return StepOutput(
            loss=total,
            metrics={f"loss/{name}": value.detach() for name, value in losses.items()},
            rewards=self._rewards(model, hidden, batch, stage),
            routings=routings,
        )

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes ``config.json``, ``model.safetensors``, ``model.md`` and ``tokenizer.json``."""
        save_model(model, folder)
        self._tokenizer.save(folder)

    def _stage_objectives(self, stage: Stage) -> list[tuple[str, float, Objective]]:
        if stage.name not in self._objectives:
            built = []
            for spec in stage.objectives or [{"name": "language-modeling"}]:
                settings = {key: value for key, value in spec.items() if key != "weight"}
                built.append((str(spec["name"]), float(spec.get("weight", 1.0)), registry.build("objective", settings)))
            self._objectives[stage.name] = built
        return self._objectives[stage.name]


@dataclass(frozen=True)
class _Prepared:
    """An encoded row and its media, in order of the row's placeholders."""

    row: Row
    media: Sequence[Medium]

    @property
    def num_images(self) -> int:
        """Squares that the image encoder reads."""
        return sum(medium.num_images for medium in self.media)

    @property
    def num_bytes(self) -> int:
        return self.row.input_ids.nbytes * 4 + sum(medium.num_bytes for medium in self.media)


@dataclass
class _Budget:
    """Bytes that may still be kept."""

    left: int


class _PreparedRows:
    """The rows of one binding, decoded and encoded once while memory lasts."""

    def __init__(self, source: SampleSource, tasks: Sequence[str], encoder: Encoder, reader: MediaReader) -> None:
        self.source = source
        self._tasks, self._encoder, self._reader = tasks, encoder, reader
        self._kept: dict[int, _Prepared] = {}

    def take(self, indices: NDArray[np.int64], budget: _Budget) -> list[_Prepared]:
        """The rows at ``indices``; those not kept are read and prepared by the loader's threads."""
        missing = [index for index in dict.fromkeys(indices.tolist()) if index not in self._kept]
        fresh: dict[int, _Prepared] = {}
        if missing:
            prepared = load_samples(self.source, missing, self._prepare, size=lambda item: item.num_bytes)
            fresh = dict(zip(missing, prepared, strict=True))
        for index, item in fresh.items():
            if item.num_bytes <= budget.left:
                self._kept[index] = item
                budget.left -= item.num_bytes
        return [self._kept[index] if index in self._kept else fresh[index] for index in indices.tolist()]

    def _prepare(self, sample: Sample) -> _Prepared:
        row = self._encoder.encode(sample, self._tasks)
        return _Prepared(row, self._reader.read_row(row, sample.media, field=f"sample[{sample.id}].media"))


class _Loader:
    """Reads the rows that a stage draws; those measured for packing are held until their pack is made."""

    def __init__(self, rows: Mapping[str, _PreparedRows], budget: _Budget) -> None:
        self._rows, self._budget = rows, budget
        # By sample number; what the packing buffer holds and a step takes.
        self._held: dict[int, _Prepared] = {}

    def measure(self, drawn: Sequence[Drawn]) -> list[Size]:
        """What the samples take of a pack."""
        self._hold(drawn)
        items = [self._held[sample.number] for sample in drawn]
        return [Size(tokens=len(item.row), images=item.num_images) for item in items]

    def take(self, drawn: Sequence[Drawn]) -> list[_Prepared]:
        """The rows of the samples, in their order."""
        self._hold([sample for sample in drawn if sample.number not in self._held])
        return [self._held.pop(sample.number) for sample in drawn]

    def _hold(self, drawn: Sequence[Drawn]) -> None:
        """Reads the samples, those of a source in one call."""
        for source, samples in by_source(drawn).items():
            rows = np.array([sample.row for sample in samples], dtype=np.int64)
            items = self._rows[source].take(rows, self._budget)
            self._held.update((sample.number, item) for sample, item in zip(samples, items, strict=True))


def _holds(pack: PackConfig, bounds: EncodingConfig) -> bool:
    """Whether any row within the bounds fits into a pack."""
    return pack.max_tokens >= bounds.max_length_tokens and pack.max_images >= bounds.max_images


def _consumed(drawn: Sequence[Drawn], items: Sequence[_Prepared]) -> dict[str, Consumed]:
    counts: dict[str, Consumed] = {}
    for sample, item in zip(drawn, items, strict=True):
        entry = counts.setdefault(sample.source, Consumed())
        entry.samples += 1
        entry.tokens += len(item.row)
        entry.images += item.num_images
    return counts
