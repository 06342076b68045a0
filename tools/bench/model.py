"""A training step of the whole model against transformers' LLaVA with the same weights, in one run.

``python -m tools.bench.model`` prints milliseconds a step and the memory of a step, then one line of JSON. A batch is
pictures with questions and answers of mixed length, one conversation a picture. Contenders compute the same loss, which
is compared first:

* rebus: rows laid end to end without padding, logits in chunks and only where a label stands;
* llava: transformers as it comes: rows padded to the longest, logits of every token;
* bucketed: transformers as a careful user would run it: rows sorted by length into batches of like length, logits only
  where a label stands, gradients summed over the batches.

Rounds take turns, so that a busy moment meets all, and medians are compared. Memory is that of a process of its own for
each: the highest resident size in two steps, above what weights and batch held before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from rebus.data.encoding import IGNORE_INDEX, Row
from rebus.data.preprocess import ImageProcessorConfig
from rebus.models.media import MediaBatch
from rebus.models.mllm import Mllm, MllmConfig
from rebus.models.packing import pack_rows
from rebus.objectives.base import MllmBatch, MllmOutputs
from rebus.objectives.language_modeling import LanguageModeling, LanguageModelingConfig

IMAGE_TOKEN = 1
# Least speed-up over llava and largest share of its memory, by vocabulary.
BARS = {8192: (1.7, 0.5), 32768: (2.7, 0.3)}
NAMES = ("rebus", "llava", "bucketed")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The model, and the batch."""

    vocab: int
    width: int = 256
    layers: int = 6
    heads: int = 4
    image_side: int = 96
    patch_side: int = 16
    vision_width: int = 192
    vision_layers: int = 4
    rows: int = 16
    # Batches of like length that the careful user makes of one.
    buckets: int = 4

    @property
    def image_tokens(self) -> int:
        """Tokens that an image takes in a row."""
        return (self.image_side // self.patch_side) ** 2


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=Sizes.rows, help="pictures with a conversation a step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for vocab, bars in BARS.items():
        sizes = Sizes(vocab=vocab, rows=options.rows)
        rows = conversations(sizes)
        times = _times(sizes, rows, options.repeats)
        memory = {name: _memory(name, sizes, options.threads) for name in NAMES}
        results[vocab] = {"times_ms": times, "memory_mb": memory, **_ratios(times, memory), **_shares(rows)}
        _print(vocab, results[vocab], bars)
    print(json.dumps({"bench": "model", "threads": options.threads, "results": results}))


def conversations(sizes: Sizes) -> list[Row]:
    """Rows of an image, a question without labels and an answer with them; the lengths are log-normal, as in LLaVA's
    instructions (a few long ones among many short)."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(sizes.rows):
        length = int(np.clip(rng.lognormal(np.log(64), 0.8), 8, 512))
        text = rng.integers(2, sizes.vocab, length)
        ids = np.concatenate([[0], np.full(sizes.image_tokens, IMAGE_TOKEN), text])
        labels = np.full_like(ids, IGNORE_INDEX)
        labels[-(length // 2) :] = ids[-(length // 2) :]
        whole = np.arange(len(ids))
        rows.append(Row(input_ids=ids, labels=labels, positions=whole, branches=np.zeros_like(ids), images=(0,)))
    return rows


def _times(sizes: Sizes, rows: Sequence[Row], repeats: int) -> dict[str, float]:
    """Median milliseconds of forward, loss and backward."""
    steps = {name: contender(name, sizes, rows) for name in NAMES}
    expected = steps["llava"].loss().detach()
    for step in steps.values():
        torch.testing.assert_close(step.loss().detach(), expected)
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            step.model.zero_grad(set_to_none=True)
            started = time.perf_counter()
            step.run()
            found[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(times[1:]) for name, times in found.items()}  # the first warms up


@dataclass(frozen=True)
class Step:
    """A contender: ``run`` leaves the gradients of the batch; ``loss`` is the batch's."""

    model: nn.Module
    parts: Sequence[Callable[[], Tensor]]

    def run(self) -> None:
        """Forward and backward, part by part."""
        for part in self.parts:
            part().backward()

    def loss(self) -> Tensor:
        """The sum of the parts."""
        with torch.no_grad():
            return torch.stack([part() for part in self.parts]).sum()


def contender(name: str, sizes: Sizes, rows: Sequence[Row]) -> Step:
    """One of ``NAMES``, all with the same weights."""
    pixels = torch.randn(len(rows), 3, sizes.image_side, sizes.image_side, generator=torch.manual_seed(1))
    ours = _rebus(sizes)
    if name == "rebus":
        objective = LanguageModeling(LanguageModelingConfig(chunk_tokens=512))
        return Step(ours, [lambda: _rebus_loss(ours, objective, rows, pixels)])
    peer = _llava(sizes, ours)
    if name == "llava":
        return Step(peer, [lambda: _llava_loss(peer, rows, pixels)])
    order = np.argsort([len(row) for row in rows], kind="stable")
    total = sum(int((row.labels != IGNORE_INDEX).sum()) for row in rows)
    buckets = np.array_split(order, sizes.buckets)
    return Step(
        peer,
        [lambda at=at: _bucket_loss(peer, [rows[index] for index in at], pixels[at], total) for at in buckets],
    )


def _rebus(sizes: Sizes) -> Mllm:
    torch.manual_seed(0)
    model = Mllm(
        MllmConfig(
            encoder={
                "name": "vit",
                "image_size": sizes.image_side,
                "patch_size": sizes.patch_side,
                "width": sizes.vision_width,
                "num_layers": sizes.vision_layers,
                "num_heads": sizes.heads,
                "hidden_width": 4 * sizes.vision_width,
            },
            connector={"name": "mlp"},
            decoder={
                "name": "llama",
                "width": sizes.width,
                "num_layers": sizes.layers,
                "num_heads": sizes.heads,
                "num_kv_heads": sizes.heads,
                "hidden_width": 3 * sizes.width,
            },
            vocab_size=sizes.vocab,
            image_token_id=IMAGE_TOKEN,
            preprocess=ImageProcessorConfig(image_size=sizes.image_side),
        )
    )
    model.vision_encoder.norm = nn.Identity()  # LLaVA reads what comes before it
    return model


def _rebus_loss(model: Mllm, objective: LanguageModeling, rows: Sequence[Row], pixels: Tensor) -> Tensor:
    packed = pack_rows(rows, image_token_id=IMAGE_TOKEN)
    shown = pixels[[row for row, _ in packed.images]]
    hidden = model.forward_packed(packed, model.encode_images(shown))
    batch = MllmBatch(rows=packed, media=MediaBatch.of_images(pixels))
    return objective(model, MllmOutputs(batch=batch, image_features=None, hidden_states=hidden))


def _llava(sizes: Sizes, ours: Mllm) -> LlavaForConditionalGeneration:
    """transformers' LLaVA with our weights."""
    vision = SiglipVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.heads,
        image_size=sizes.image_side,
        patch_size=sizes.patch_side,
        hidden_act="gelu",
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        intermediate_size=3 * sizes.width,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=sizes.image_tokens,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    peer = LlavaForConditionalGeneration(config)
    missing, unexpected = peer.load_state_dict(dict(_llava_weights(ours)), strict=False)
    unused = {"lm_head.weight", *(f"model.vision_tower.post_layernorm.{name}" for name in ("weight", "bias"))}
    assert not unexpected, unexpected
    assert set(missing) <= unused, missing
    peer.tie_weights()
    return peer.train()


def _llava_weights(ours: Mllm) -> list[tuple[str, Tensor]]:
    """Our weights under transformers' names."""
    found: list[tuple[str, Tensor]] = []
    for name, value in ours.state_dict().items():
        if name.startswith("decoder."):
            found.append((name.replace("decoder.", "model.language_model.", 1), value))
        elif name.startswith("connector."):
            layer = {"fc1": "linear_1", "fc2": "linear_2"}[name.split(".")[1]]
            found.append((f"model.multi_modal_projector.{layer}.{name.split('.')[2]}", value))
        elif "qkv_proj" in name:
            parts = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
            found += [(_vision_name(name.replace("qkv_proj", f"self_attn.{part}")), piece) for part, piece in parts]
        else:
            found.append((_vision_name(name), value))
    return found


def _vision_name(name: str) -> str:
    for ours, theirs in (
        ("vision_encoder.patch_embed", "embeddings.patch_embedding"),
        ("vision_encoder.position", "embeddings.position_embedding.weight"),
        ("vision_encoder.blocks", "encoder.layers"),
        ("norm1", "layer_norm1"),
        ("norm2", "layer_norm2"),
        (".out_proj", ".self_attn.out_proj"),
        (".fc", ".mlp.fc"),
    ):
        name = name.replace(ours, theirs)
    return f"model.vision_tower.{name}"


def _llava_loss(peer: LlavaForConditionalGeneration, rows: Sequence[Row], pixels: Tensor) -> Tensor:
    ids, labels, mask = _padded(rows)
    return peer(input_ids=ids, attention_mask=mask, labels=labels, pixel_values=pixels).loss


def _bucket_loss(peer: LlavaForConditionalGeneration, rows: Sequence[Row], pixels: Tensor, total_labels: int) -> Tensor:
    ids, labels, mask = _padded(rows)
    hidden = peer.model(input_ids=ids, attention_mask=mask, pixel_values=pixels).last_hidden_state
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    at = targets != IGNORE_INDEX
    return F.cross_entropy(peer.lm_head(hidden[at]), targets[at], reduction="sum") / total_labels


def _padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded ids, labels and attention mask ``[rows, longest]``."""
    longest = max(len(row) for row in rows)

    def padded(part: Callable[[Row], NDArray[np.int64]], fill: int) -> Tensor:
        parts = [np.pad(part(row), (0, longest - len(row)), constant_values=fill) for row in rows]
        return torch.from_numpy(np.stack(parts))

    return (
        padded(lambda row: row.input_ids, 0),
        padded(lambda row: row.labels, IGNORE_INDEX),
        padded(lambda row: np.ones_like(row.input_ids), 0),
    )


def _memory(name: str, sizes: Sizes, threads: int) -> float:
    """Megabytes that a step takes above weights and batch."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_memory, (name, sizes, threads))


def _measure_memory(name: str, sizes: Sizes, threads: int) -> float:
    torch.set_num_threads(threads)
    step = contender(name, sizes, conversations(sizes))
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
    before = _status("VmRSS")
    for _ in range(2):
        step.model.zero_grad(set_to_none=True)
        step.run()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    """Megabytes of this process."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


def _ratios(times: dict[str, float], memory: dict[str, float]) -> dict[str, float]:
    return {
        "speed": times["llava"] / times["rebus"],
        "memory": memory["rebus"] / memory["llava"],
        "speed_bucketed": times["bucketed"] / times["rebus"],
        "memory_bucketed": memory["rebus"] / memory["bucketed"],
    }


def _shares(rows: Sequence[Row]) -> dict[str, float]:
    """Of the padded batch, the share of padding; of the real tokens, the share with a label."""
    real = sum(len(row) for row in rows)
    labels = sum(int((row.labels != IGNORE_INDEX).sum()) for row in rows)
    return {"padding": 1 - real / (len(rows) * max(len(row) for row in rows)), "labelled": labels / real}


def _print(vocab: int, result: dict[str, Any], bars: tuple[float, float]) -> None:
    times, memory = result["times_ms"], result["memory_mb"]
    print(
        f"vocabulary {vocab}; {result['padding']:.0%} of llava's batch is padding, "
        f"{result['labelled']:.0%} of the tokens have a label"
    )
    for name in NAMES:
        print(f"  {name:<9} {times[name]:>8.1f} ms {memory[name]:>8.0f} MB")
    print(
        f"  speed over llava {result['speed']:.2f} (bar >= {bars[0]}), memory {result['memory']:.2f} "
        f"(bar <= {bars[1]}); over bucketed {result['speed_bucketed']:.2f} and {result['memory_bucketed']:.2f}"
    )


if __name__ == "__main__":
    main()
