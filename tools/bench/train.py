"""A training step on packed rows against the same weights in transformers on a padded batch, in one run.

``python -m tools.bench.train`` prints milliseconds a step and real tokens a second, then one line of JSON. Each row is
an image with questions of mixed length. transformers gets every question as a row of its own behind its own copy of the
image's tokens, right-padded to the longest, and computes logits everywhere: what a LLaVA-style trainer does. Ours packs
the questions behind one copy, without padding, and computes logits where a label stands. The losses are compared first:
they must agree, or the table would compare different work. The image encoder is left out, since both would share it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from rebus.data.encoding import IGNORE_INDEX, Row
from rebus.models.decoders.llama import Llama, LlamaConfig
from rebus.models.packing import PackedRows, pack_rows

IMAGE_TOKENS = 16


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8, help="images a step")
    parser.add_argument("--questions", type=int, default=8, help="questions an image")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    print(f"{'width':>6} {'layers':>6} {'vocab':>6} {'rebus ms':>9} {'peer ms':>9} {'ratio':>6} {'rebus tok/s':>12}")
    for width, layers, vocab in ((128, 4, 512), (128, 4, 8192), (256, 4, 8192)):
        config = LlamaConfig(width=width, num_layers=layers, num_heads=4, num_kv_heads=4, hidden_width=2 * width)
        result = _compare(config, vocab, _rows(options.rows, options.questions, vocab), options.repeats)
        results.append({"width": width, "layers": layers, "vocab": vocab, **result})
        print(
            f"{width:>6} {layers:>6} {vocab:>6} {result['rebus_ms']:>9.1f} {result['peer_ms']:>9.1f} "
            f"{result['peer_ms'] / result['rebus_ms']:>6.2f} {result['rebus_tokens_per_second']:>12.0f}"
        )
    print(json.dumps({"bench": "train", "threads": options.threads, "results": results}))


def _rows(count: int, questions: int, vocab: int) -> list[Row]:
    """Images with questions of 6 to 48 tokens (most of them short) and answers of 2, as the encoding lays them out."""
    rng, draw = np.random.default_rng(0), random.Random(0)
    rows = []
    for _ in range(count):
        lengths = [min(48, 6 + int(draw.expovariate(1 / 8))) for _ in range(questions)]
        prefix = np.zeros(IMAGE_TOKENS + 1, dtype=np.int64)
        ids = [prefix] + [rng.integers(1, vocab, length + 2) for length in lengths]
        labels = [np.full_like(part, IGNORE_INDEX) for part in ids]
        for part, label in zip(ids[1:], labels[1:], strict=True):
            label[-2:] = part[-2:]
        rows.append(
            Row(
                input_ids=np.concatenate(ids),
                labels=np.concatenate(labels),
                positions=np.concatenate(
                    [np.arange(len(prefix))] + [len(prefix) + np.arange(len(part)) for part in ids[1:]]
                ),
                branches=np.repeat(np.arange(len(ids)), [len(part) for part in ids]),
                images=(),
            )
        )
    return rows


def _compare(config: LlamaConfig, vocab: int, rows: Sequence[Row], repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    ours = Llama(config, vocab_size=vocab)
    peer = _peer(ours, config, vocab)
    ids, labels, mask = _padded(rows)

    def rebus_step() -> Tensor:
        return _packed_loss(ours, pack_rows(rows, image_token_id=-1))

    def peer_step() -> Tensor:
        return peer(input_ids=ids, attention_mask=mask, labels=labels).loss

    torch.testing.assert_close(rebus_step(), peer_step(), rtol=1e-4, atol=1e-4)
    times = _alternate({"rebus": (ours, rebus_step), "peer": (peer, peer_step)}, repeats)
    real = sum(len(row) for row in rows)
    return {
        "rebus_ms": 1000 * times["rebus"],
        "peer_ms": 1000 * times["peer"],
        "rebus_tokens_per_second": real / times["rebus"],
        "padding_share": 1 - float(mask.float().mean()),
    }


def _packed_loss(model: Llama, packed: PackedRows) -> Tensor:
    hidden = model.forward_packed(model.embed_tokens(packed.input_ids), packed.positions, packed.layout)
    at = torch.nonzero(packed.targets != IGNORE_INDEX)[:, 0]
    return nn.functional.cross_entropy(model.logits(hidden.index_select(0, at)), packed.targets[at])


def _peer(ours: Llama, config: LlamaConfig, vocab: int) -> LlamaForCausalLM:
    """transformers' LLaMA with our weights."""
    peer = LlamaForCausalLM(
        HfConfig(
            vocab_size=vocab,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.hidden_width,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=True,
        )
    )
    peer.model.load_state_dict(ours.state_dict())
    return peer


def _padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Every branch behind a copy of its prefix, right-padded: ids, labels, attention mask ``[branches, longest]``."""
    parts = [
        [np.concatenate([a[row.branches == 0], a[row.branches == k]]) for a in (row.input_ids, row.labels)]
        for row in rows
        for k in range(1, int(row.branches.max()) + 1)
    ]
    longest = max(len(ids) for ids, _ in parts)
    ids = np.zeros((len(parts), longest), dtype=np.int64)
    labels, mask = np.full_like(ids, IGNORE_INDEX), np.zeros_like(ids)
    for at, (row_ids, row_labels) in enumerate(parts):
        size = len(row_ids)
        ids[at, :size], labels[at, :size], mask[at, :size] = row_ids, row_labels, 1
    return torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(mask)


def _alternate(paths: dict[str, tuple[nn.Module, Callable[[], Tensor]]], repeats: int) -> dict[str, float]:
    """Median seconds of a forward and a backward pass; the paths take turns, so that a busy moment meets both."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats + 1):
        for name, (model, step) in paths.items():
            model.zero_grad(set_to_none=True)
            start = time.perf_counter()
            step().backward()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # the first warms up


if __name__ == "__main__":
    main()
