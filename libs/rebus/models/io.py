"""A model's folder: ``config.json`` names the architecture and holds its config, ``model.safetensors`` the weights.

``model.md`` is for people and never read here; older folders have none.

Nothing is unpickled. A folder is checked whole (architecture, config, names, shapes and dtypes of all tensors) before a
weight is used.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rebus import config as configs
from rebus.errors import DataLossError, InvalidArgumentError, NotFoundError, invalid

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "model.md"

# Architecture -> module, class, and the dataclass of its config.
ARCHITECTURES: Mapping[str, tuple[str, str, str]] = {
    "causal-lm": ("rebus.models.causal_lm", "CausalLm", "CausalLmConfig"),
    "mllm": ("rebus.models.mllm", "Mllm", "MllmConfig"),
    "mllm-embedder": ("rebus.models.mllm_embedder", "MllmEmbedder", "MllmEmbedderConfig"),
    "dual-encoder": ("rebus.models.dual_encoder", "DualEncoder", "DualEncoderConfig"),
}


def save_model(model: nn.Module, folder: Path) -> None:
    """Writes ``config.json``, ``model.safetensors`` and ``model.md`` of a model whose class is in ``ARCHITECTURES``.

    Equal models give equal bytes.
    """
    from rebus.models import card  # it knows all architectures, which load only when they are used

    names = {cls: name for name, (_, cls, _) in ARCHITECTURES.items()}
    if type(model).__name__ not in names:
        raise TypeError(f"{type(model).__name__} is none of the architectures {', '.join(ARCHITECTURES)}")
    folder.mkdir(parents=True, exist_ok=True)
    values = {"architecture": names[type(model).__name__], **configs.to_plain(model.config)}
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tensors(model.state_dict(), folder / WEIGHTS_FILE)
    (folder / CARD_FILE).write_text(card.describe(model).markdown(), encoding="utf-8")


def load_model(folder: Path) -> nn.Module:
    """The model in evaluation mode, on the CPU.

    Raises ``NotFoundError`` for a missing file, ``InvalidArgumentError`` for a bad config, ``DataLossError`` where the
    weights are unreadable or do not fit the config.
    """
    values = _read_config(folder / CONFIG_FILE)
    architecture = values.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        raise invalid(
            f"{CONFIG_FILE}.architecture", f"unknown {architecture!r}; known: {', '.join(sorted(ARCHITECTURES))}"
        )
    module_name, class_name, config_name = ARCHITECTURES[architecture]
    module = importlib.import_module(module_name)
    config = configs.build(getattr(module, config_name), values, where=CONFIG_FILE)
    # Initial weights are about to be replaced; drawing them must not disturb the caller's generator.
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = getattr(module, class_name)(config)
    load_weights(model, folder / WEIGHTS_FILE)
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Replaces every weight and buffer of ``model``; all names, shapes and dtypes must match."""
    tensors = load_tensors(path)
    expected = model.state_dict()
    problems = [f"lacks {name}" for name in expected if name not in tensors]
    problems += [f"has an unknown {name}" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        want, found = expected[name], tensors[name]
        if want.shape != found.shape or want.dtype != found.dtype:
            problems.append(f"{name} is {_describe(found)}, expected {_describe(want)}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DataLossError(f"{path.name}: {'; '.join(sorted(problems)[:5])}{more}")
    model.load_state_dict(tensors)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors as safetensors, each with memory of its own."""
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, str(path))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file; ``NotFoundError`` or ``DataLossError`` name it."""
    if not path.is_file():
        raise NotFoundError(f"no {path.name} in {path.parent}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataLossError(f"{path.name}: unreadable: {error}") from None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"no {path.name} in {path.parent}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidArgumentError(f"{path.name}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise invalid(path.name, f"expected a mapping, found {type(values).__name__}")
    return values


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
