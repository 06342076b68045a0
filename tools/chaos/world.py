"""A small store in which every kind of resource exists, made by the library's own jobs in a few seconds.

The models have random weights: what is asked of them is that they answer, not that they are right.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import torch
from google.protobuf import struct_pb2
from google.protobuf.message import Message

from rebus.config import digest, parse_yaml
from rebus.data.dataset import open_version
from rebus.data.encoding import EncodingConfig
from rebus.data.preprocess import ImageProcessorConfig
from rebus.data.tokenizer import Tokenizer, TokenizerConfig
from rebus.errors import AbortedError
from rebus.jobs import status
from rebus.jobs.context import JobContext
from rebus.jobs.kinds import entry_point
from rebus.models import save_model
from rebus.models.dual_encoder import DualEncoder, DualEncoderConfig
from rebus.models.mllm import Mllm, MllmConfig
from rebus.store import Store, documents, manifests, media, model_versions
from rebus.v1.common_pb2 import JobStatus
from rebus.v1.dataset_pb2 import Curation, Curator, Ingestion, Source
from rebus.v1.evaluation_pb2 import BenchmarkSpec, Evaluation
from rebus.v1.retrieval_pb2 import Index
from rebus.v1.training_pb2 import Run
from tools.chaos.pictures import PICTURES

DATASET = "datasets/scenes/versions/1"
RECIPE = "name: tiny\n"
_IMAGE_SIZE = 16
_VIT = {
    "name": "vit",
    "image_size": _IMAGE_SIZE,
    "patch_size": 8,
    "width": 16,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_width": 32,
}
_LLAMA = {"name": "llama", "width": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "hidden_width": 48}


def build(store: Store) -> list[str]:
    """Fills an empty store; the names of its resources."""
    with tempfile.TemporaryDirectory(prefix="rebus-world-") as folder:
        cache = Path(folder)
        settings = struct_pb2.Struct()
        settings.update(
            {"num_scenes": 12, "num_pairs": 4, "num_texts": 2, "image_size": _IMAGE_SIZE, "test_share": 0.3}
        )
        source = Source(reader="scenes", settings=settings)
        _run(store, "ingestions/done", Ingestion(dataset="datasets/scenes", sources=[source]), cache)
        curators = [Curator(curator="exact-dedup")]
        _run(store, "curations/done", Curation(dataset_version=DATASET, curators=curators), cache)
        answers = _register(store, "answers", _mllm(store, cache / "answers"))
        vectors = _register(store, "vectors", _dual_encoder(cache / "vectors"))
        _run(store, "indexes/done", Index(model_version=vectors, dataset_version=DATASET, algorithm="flat"), cache)
        benchmark = BenchmarkSpec(benchmark="scene-questions", dataset_version=DATASET, split="test", max_items=4)
        _run(store, "evaluations/done", Evaluation(model_version=answers, benchmarks=[benchmark]), cache)
    documents.create(store, _new_run("runs/failed"))
    status.transition(store, "runs/failed", JobStatus.FAILED, error=AbortedError("the worker was killed by SIGKILL"))
    return [*sorted(_names(store)), _upload(store)]


def _upload(store: Store) -> str:
    """A picture that requests may refer to."""
    name = f"{media.COLLECTION}/{hashlib.sha256(PICTURES[0]).hexdigest()}"
    store.put(name, PICTURES[0])
    return name


def _run(store: Store, name: str, message: Message, cache: Path) -> None:
    """A job carried out in this process."""
    message.name = name  # pyright: ignore[reportAttributeAccessIssue]
    status.job_of(message).state = JobStatus.RUNNING
    documents.create(store, message)
    context = JobContext(store, name, cache)
    entry_point(name)(context)
    context.flush()
    status.transition(store, name, JobStatus.SUCCEEDED)


def _register(store: Store, name: str, folder: Path) -> str:
    """Publishes a saved model as the checkpoint of a run, registers it, and makes it the champion."""
    run = _new_run(f"runs/{name}")
    run.checkpoint, run.step = f"{run.name}/checkpoints/step-1", 1
    for path in folder.iterdir():
        store.upload(path, f"{run.checkpoint}/{model_versions.CHECKPOINT_MODEL}/{path.name}")
    manifests.publish(store, run.checkpoint)
    run.job.state = JobStatus.SUCCEEDED
    documents.create(store, run)
    version = model_versions.register(store, f"models/{name}", run.name).name
    model_versions.set_alias(store, f"models/{name}", "champion", version)
    return version


def _new_run(name: str) -> Run:
    run = Run(name=name, recipe=RECIPE, recipe_digest=digest(parse_yaml(RECIPE)), datasets={"scenes": DATASET})
    run.job.state = JobStatus.QUEUED
    return run


def _mllm(store: Store, folder: Path) -> Path:
    texts = [segment.text for sample in open_version(store, DATASET).scan() for segment in sample.segments]
    tokenizer = Tokenizer.train(texts, TokenizerConfig(vocab_size=320))
    torch.manual_seed(0)
    model = Mllm(
        MllmConfig(
            encoder=_VIT,
            decoder=_LLAMA,
            vocab_size=tokenizer.vocab_size,
            image_token_id=tokenizer.image_token_id,
            preprocess=ImageProcessorConfig(image_size=_IMAGE_SIZE),
            encoding=EncodingConfig(max_length_tokens=256, max_images=4),
        )
    )
    save_model(model, folder)
    tokenizer.save(folder)
    return folder


def _dual_encoder(folder: Path) -> Path:
    torch.manual_seed(0)
    text_encoder = {"name": "ngram-bag", "width": 8, "num_buckets": 64}
    save_model(DualEncoder(DualEncoderConfig(vision_encoder=_VIT, text_encoder=text_encoder, width=16)), folder)
    return folder


def _names(store: Store) -> set[str]:
    folders = {info.path.rpartition("/")[0] for info in store.list()}
    return {name for name in folders if _is_resource(store, name)}


def _is_resource(store: Store, name: str) -> bool:
    return "/".join(name.split("/")[::2]) in documents.TYPES and store.exists(documents.path_of(name))
