"""An embedding model and a data set of a few pictures, stored and published as real ones are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rebus.data.dataset import write_version
from rebus.data.sample import Sample, Segment
from rebus.models import save_model
from rebus.models.dual_encoder import DualEncoder, DualEncoderConfig
from rebus.store import Store, documents, manifests
from rebus.v1.dataset_pb2 import DatasetVersion
from rebus.v1.model_pb2 import Model, ModelVersion

MODEL = "models/tiny/versions/1"


def model() -> DualEncoder:
    """Random weights; images are told apart all the same."""
    torch.manual_seed(0)
    config = DualEncoderConfig(
        vision_encoder={"name": "efficientnet-lite0", "image_size": 32},
        text_encoder={"name": "ngram-bag", "width": 8, "num_buckets": 64},
        width=16,
    )
    built = DualEncoder(config)
    built.vision_encoder.load_pretrained()  # pyright: ignore[reportCallIssue]
    return built.eval()


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def samples(count: int) -> list[Sample]:
    """Pictures in two splits, and a row that has media but no picture in between."""
    rows = [
        Sample(
            id=f"picture-{seed}",
            split="test" if seed % 2 else "train",
            segments=[Segment(type="image", media=0), Segment(text=f"name {seed}", branch=1)],
            media=[picture(seed)],
        )
        for seed in range(count)
    ]
    sound = [Segment(type="audio", media=0), Segment(text="no picture")]
    return [*rows[:2], Sample(id="sound", split="test", segments=sound, media=[b"sound"]), *rows[2:]]


def publish_model(store: Store, folder: Path, *, architecture: str = "dual-encoder") -> ModelVersion:
    save_model(model(), folder)
    for path in folder.iterdir():
        store.upload(path, f"{MODEL}/{path.name}")
    manifest = manifests.publish(store, MODEL)
    documents.create(store, Model(name="models/tiny", aliases={"champion": MODEL}, latest_version=MODEL))
    return documents.create(store, ModelVersion(name=MODEL, architecture=architecture, digest=manifest.digest))


def publish_pictures(store: Store, count: int = 8) -> DatasetVersion:
    return write_version(store, "datasets/pictures", samples(count))
