"""A whole model there and back: what every kind of multimodal model must keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from rebus.models import load_model
from rebus.models.hf import export_folder, import_folder
from rebus.models.mllm import Mllm


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def assert_comes_back(
    ours: Mllm,
    theirs: Any,
    folder: Path,
    *,
    write: Callable[..., None],
    same: Callable[[Mllm, Any], None],
    max_shard_bytes: int,
) -> None:
    """``theirs``, read as ``ours`` and written in shards, opens as the same model, bit for bit and by ``same``."""
    write(ours, folder, max_shard_bytes=max_shard_bytes)
    assert len(list(folder.glob("*.safetensors"))) > 2
    back = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert type(back) is type(theirs)
    assert_same_weights(back.state_dict(), theirs.state_dict())
    same(ours, back)


def assert_import_export_import(theirs: Path, folder: Path, architecture: str) -> Any:
    """Two imports with an export between are equal, byte for byte; returns the model."""
    made = import_folder(theirs, folder / "first")
    assert_same_weights(load_model(folder / "first").state_dict(), made.state_dict())
    assert export_folder(folder / "first", folder / "back") == architecture
    again = import_folder(folder / "back", folder / "second")
    assert again.config == made.config
    for name in ("config.json", "model.safetensors"):
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()
    return made
