"""The whole journey, data to evaluation: ingest, curate, train, register, index, evaluate, promote if better.

``mllm`` makes a model that answers questions about pictures, ``embedder`` one that finds pictures by text, and
``end_to_end`` both. The defaults are the quickstart's; every value is a parameter of the pipeline run.
"""

# No `from __future__ import annotations`: kfp reads the annotations as objects.
# kfp's decorators change what a function takes and returns, and do not say so in their types:
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
from typing import NamedTuple

from kfp import dsl

from pipelines.components.base import client_step
from pipelines.components.curate import curate
from pipelines.components.evaluate import evaluate
from pipelines.components.index import index
from pipelines.components.ingest import ingest
from pipelines.components.promote import promote
from pipelines.components.register import register
from pipelines.components.train import train


class MllmOutputs(NamedTuple):
    """Names of what ``mllm`` made."""

    dataset: str
    model: str
    evaluation: str
    champion: str


class EmbedderOutputs(NamedTuple):
    """Names of what ``embedder`` made."""

    dataset: str
    model: str
    search_index: str
    evaluation: str
    champion: str


class EndToEndOutputs(NamedTuple):
    """Names of what ``end_to_end`` made: the fields of ``MllmOutputs``, then those of ``EmbedderOutputs``."""

    mllm_dataset: str
    mllm_model: str
    mllm_evaluation: str
    mllm_champion: str
    embedder_dataset: str
    embedder_model: str
    embedder_index: str
    embedder_evaluation: str
    embedder_champion: str


SCENES = [{"reader": "scenes"}]
EMOJI = [{"reader": "emoji"}]
CURATORS = [{"curator": "exact-dedup"}]
MLLM_BENCHMARKS = [{"benchmark": name} for name in ("scene-questions", "scene-differences", "scene-captions")]
EMBEDDER_BENCHMARKS = [{"benchmark": "image-text-retrieval"}]


@dsl.pipeline(name="mllm", description="Pictures and questions to a scored model that answers them.")
def mllm(
    dataset: str = "scenes",
    sources: list = SCENES,
    curators: list = CURATORS,
    recipe: str = "quickstart-scenes",
    model: str = "scenes",
    benchmarks: list = MLLM_BENCHMARKS,
    confusion_of: str = "scene-questions/color",
    metric: str = "scene-questions/mean/exact_match",
    seed: int = 0,
    revision: str = "",
) -> MllmOutputs:
    """Trains and scores an answering model.

    Args:
        dataset: Id of the dataset to write.
        sources: What to read into it (messages `rebus.v1.Source`).
        curators: How to curate it (messages `rebus.v1.Curator`).
        recipe: What to train: a packaged recipe's name, or YAML text.
        model: Id of the model to register.
        benchmarks: What to score it on (messages `rebus.v1.BenchmarkSpec`); items come from the curated dataset.
        confusion_of: `benchmark/group` to draw as a confusion matrix.
        metric: The score that decides on promotion.
        seed: Seed of training and evaluation.
        revision: Another value makes everything anew.
    """
    raw = client_step(ingest(dataset=dataset, sources=sources, revision=revision))
    data = client_step(curate(ingested=raw.outputs["version"], curators=curators, revision=revision))
    version = data.outputs["version"]
    run = client_step(train(version=version, recipe=recipe, seed=seed, revision=revision))
    registered = client_step(register(run=run.outputs["run"], model=model))
    scored = client_step(
        evaluate(
            dataset=version,
            model=registered.outputs["version"],
            benchmarks=benchmarks,
            confusion_of=confusion_of,
            seed=seed,
            revision=revision,
        )
    )
    best = client_step(
        promote(
            model=registered.outputs["version"],
            evaluation=scored.outputs["evaluation"],
            metric=metric,
            revision=revision,
        )
    )
    return MllmOutputs(*(task.outputs["Output"] for task in (data, registered, scored, best)))


@dsl.pipeline(name="embedder", description="Pictures and names to a scored model that finds one by the other.")
def embedder(
    dataset: str = "emoji",
    sources: list = EMOJI,
    curators: list = CURATORS,
    recipe: str = "quickstart-emoji",
    model: str = "emoji",
    index_split: str = "",
    index_algorithm: str = "flat",
    benchmarks: list = EMBEDDER_BENCHMARKS,
    metric: str = "image-text-retrieval/text_to_image/recall_at_1",
    seed: int = 0,
    revision: str = "",
) -> EmbedderOutputs:
    """Trains and scores an embedding model and builds its index.

    Args:
        dataset: Id of the dataset to write.
        sources: What to read into it (messages `rebus.v1.Source`).
        curators: How to curate it (messages `rebus.v1.Curator`).
        recipe: What to train: a packaged recipe's name, or YAML text.
        model: Id of the model to register.
        index_split: Only rows of this split are indexed; empty for all.
        index_algorithm: A registered index.
        benchmarks: What to score it on (messages `rebus.v1.BenchmarkSpec`); items come from the curated dataset.
        metric: The score that decides on promotion.
        seed: Seed of training and evaluation.
        revision: Another value makes everything anew.
    """
    raw = client_step(ingest(dataset=dataset, sources=sources, revision=revision))
    data = client_step(curate(ingested=raw.outputs["version"], curators=curators, revision=revision))
    version = data.outputs["version"]
    run = client_step(train(version=version, recipe=recipe, seed=seed, revision=revision))
    registered = client_step(register(run=run.outputs["run"], model=model))
    candidate = registered.outputs["version"]
    built = client_step(
        index(dataset=version, model=candidate, split=index_split, algorithm=index_algorithm, revision=revision)
    )
    scored = client_step(
        evaluate(dataset=version, model=candidate, benchmarks=benchmarks, seed=seed, revision=revision)
    )
    best = client_step(
        promote(model=candidate, evaluation=scored.outputs["evaluation"], metric=metric, revision=revision)
    )
    return EmbedderOutputs(*(task.outputs["Output"] for task in (data, registered, built, scored, best)))


@dsl.pipeline(name="end-to-end", description="Both models of the quickstart, from bytes to scores.")
def end_to_end(
    mllm_sources: list = SCENES,
    mllm_recipe: str = "quickstart-scenes",
    mllm_benchmarks: list = MLLM_BENCHMARKS,
    embedder_sources: list = EMOJI,
    embedder_recipe: str = "quickstart-emoji",
    embedder_benchmarks: list = EMBEDDER_BENCHMARKS,
    seed: int = 0,
    revision: str = "",
) -> EndToEndOutputs:
    """Makes the answering model and the embedding model.

    Args:
        mllm_sources: What the answering model learns from (messages `rebus.v1.Source`).
        mllm_recipe: Its recipe: a packaged recipe's name, or YAML text.
        mllm_benchmarks: What it is scored on (messages `rebus.v1.BenchmarkSpec`).
        embedder_sources: What the embedding model learns from.
        embedder_recipe: Its recipe.
        embedder_benchmarks: What it is scored on.
        seed: Seed of training and evaluation.
        revision: Another value makes everything anew.
    """
    finder = embedder(
        sources=embedder_sources,
        recipe=embedder_recipe,
        benchmarks=embedder_benchmarks,
        seed=seed,
        revision=revision,
    )
    answerer = mllm(sources=mllm_sources, recipe=mllm_recipe, benchmarks=mllm_benchmarks, seed=seed, revision=revision)
    return EndToEndOutputs(
        *(answerer.outputs[name] for name in MllmOutputs._fields),
        *(finder.outputs[name] for name in EmbedderOutputs._fields),
    )


PIPELINES = {"mllm": mllm, "embedder": embedder, "end-to-end": end_to_end}
