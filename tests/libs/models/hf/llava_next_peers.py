"""Tiny random LLaVA-NeXTs of transformers, images as tiles, and how to compare ours with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from rebus.models.mllm import Mllm
from tests.libs.models.hf.llava_peers import IMAGE, SIDE, STRATEGIES, TOWERS, VISION, gradients_like_theirs
from tests.libs.models.hf.peers import PEERS, VOCAB, redraw

# In tiles; transformers counts pixels.
GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (1, 1))
PINPOINTS = [[rows * SIDE, columns * SIDE] for rows, columns in GRIDS]
PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "image_grid_pinpoints": PINPOINTS,
}
# Height and width: wide, tall, both with padding in their grids, square, very wide, and small.
SIZES = ((30, 70), (70, 25), (64, 64), (11, 90), (20, 20))


def llava_next(tower: str = "clip", text: str = "mistral", *, seed: int = 0, **changes: Any) -> Any:
    """A LLaVA-NeXT with that tower and a text model of ``PEERS``, every weight drawn."""
    model_type, values = PEERS[text]
    specials = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    settings: dict[str, Any] = {**values, "max_position_embeddings": 256, **specials}
    config = LlavaNextConfig(
        vision_config=TOWERS[tower](**VISION | {"patch_size": 16}),
        text_config=CONFIG_MAPPING[model_type](**settings),
        **{
            "image_token_index": IMAGE,
            "vision_feature_select_strategy": STRATEGIES[tower],
            "image_grid_pinpoints": PINPOINTS,
            **changes,
        },
    )
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(config).eval()
    redraw(model)
    return model


def save(model: Any, folder: Path, **preprocessor: Any) -> Path:
    """The model's folder, with an image processor's file."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | preprocessor))
    return folder


def tiles(model: Mllm, sizes: Sequence[tuple[int, int]], seed: int = 2) -> list[Tensor]:
    """As many tiles as images of ``sizes`` have, the overview first."""
    generator = torch.Generator().manual_seed(seed)
    grids = [model.connector.tiles(size, side=SIDE) for size in sizes]
    return [torch.randn(1 + rows * columns, 3, SIDE, SIDE, generator=generator) for rows, columns in grids]


def prompt(model: Mllm, sizes: Sequence[tuple[int, int]], words: int, seed: int = 3) -> Tensor:
    """A row of words with the images between them."""
    drawn = torch.randint(VOCAB - 1, (words,), generator=torch.Generator().manual_seed(seed))
    parts = drawn.tensor_split(len(sizes) + 1)
    counts = [model.connector.count(size, side=SIDE) for size in sizes]
    shown = [torch.cat([part, torch.full((count,), IMAGE)]) for part, count in zip(parts, counts, strict=False)]
    return torch.cat([*shown, parts[-1]])


def theirs_of(images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The tiles as transformers reads them: as many an image, those that lack all zeros."""
    most = max(len(image) for image in images)
    padded = [torch.cat([image, torch.zeros(most - len(image), *image.shape[1:])]) for image in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sizes)}


def logits(model: Mllm, ids: Tensor, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Of whole rows ``[B, S]``."""
    embeds = model.embed(ids, model.encode_tiles(images, sizes))
    return model.logits(model.decode(embeds, torch.arange(ids.shape[1]).expand_as(ids)))


def assert_same_model(ours: Mllm, theirs: Any) -> None:
    """Logits of a row with every one of ``SIZES``, and the gradient of every parameter, agree."""
    ids, images = prompt(ours, SIZES, 13)[None], tiles(ours, SIZES)
    weights = torch.randn(*ids.shape, VOCAB, generator=torch.Generator().manual_seed(4))
    found = logits(ours, ids, images, SIZES)
    expected = theirs(input_ids=ids, **theirs_of(images, SIZES)).logits
    torch.testing.assert_close(found, expected)

    ours.zero_grad()
    theirs.zero_grad()
    for values in (found, expected):
        (values.log_softmax(-1) * weights).mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert "model.image_newline" in gradients
    own = gradients_like_theirs(ours)
    assert own.keys() == gradients.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, gradients[name], msg=lambda m, name=name: f"{name}: {m}")
