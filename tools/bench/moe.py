"""A mixture-of-experts layer's forward and backward pass against transformers' block with the same weights, in one run.

``python -m tools.bench.moe`` prints milliseconds a pass, then one line of JSON. transformers picks the experts'
implementation as a model is built: a whole Mixtral gets ``grouped_mm``, so the peer's block is taken out of one. Built
by itself a block falls back to a loop over the experts; ``--loop`` shows that apart. Outputs and gradients are compared
first. On a GPU our layer is also measured against a dense feed-forward block of as many FLOPs a token.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralModel
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from rebus.models.decoders.llama import FeedForward, LlamaConfig
from rebus.models.moe import MoeLayer
from rebus.models.moe.hf import block_from_hf, config_from_hf


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One row of the table; ``tokens`` a pass."""

    experts: int
    top_k: int
    width: int
    hidden: int
    tokens: int


# 64 experts of half the width as in OLMoE, 64 large ones as in MM1, 8 as in Mixtral.
CPU_SHAPES = (
    Shape(experts=64, top_k=8, width=128, hidden=64, tokens=4096),
    Shape(experts=64, top_k=8, width=256, hidden=128, tokens=4096),
    Shape(experts=64, top_k=8, width=512, hidden=256, tokens=2048),
    Shape(experts=64, top_k=2, width=256, hidden=512, tokens=4096),
    Shape(experts=64, top_k=8, width=1024, hidden=512, tokens=512),
    Shape(experts=8, top_k=2, width=256, hidden=512, tokens=2048),
    Shape(experts=8, top_k=2, width=512, hidden=1024, tokens=1024),
    Shape(experts=8, top_k=2, width=1024, hidden=2048, tokens=256),
)
GPU_SHAPES = (
    Shape(experts=64, top_k=8, width=2048, hidden=1024, tokens=16384),
    Shape(experts=8, top_k=2, width=2048, hidden=5632, tokens=16384),
)
HEADER = f"{'experts':>7} {'top-k':>5} {'width':>5} {'hidden':>6} {'tokens':>6}"


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="*", help="rows of the table, from 0; default: all")
    parser.add_argument("--loop", action="store_true", help="also measure transformers' block built by itself")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = [shape for row, shape in enumerate(CPU_SHAPES) if options.only is None or row in options.only]
    result = {
        "bench": "moe",
        "threads": options.threads,
        "results": _against_peer(shapes, options.repeats, options.loop),
    }
    print(json.dumps(result | {"gpu": against_dense(options.repeats)}))


def _against_peer(shapes: list[Shape], repeats: int, loop: bool) -> list[dict[str, float]]:
    print(f"{HEADER} {'rebus ms':>9} {'peer ms':>9} {'ratio':>6} {'forward':>7}" + (" loop ms" if loop else ""))
    results = []
    for shape in shapes:
        found = compare(shape, repeats, loop)
        results.append({**vars(shape), **found})
        print(
            f"{_columns(shape)} {found['rebus_ms']:>9.1f} {found['peer_ms']:>9.1f} {found['ratio']:>6.2f} "
            f"{found['forward_ratio']:>7.2f}" + (f" {found['loop_ms']:>7.1f}" if loop else ""),
            flush=True,
        )
        gc.collect()
    return results


def _columns(shape: Shape) -> str:
    return f"{shape.experts:>7} {shape.top_k:>5} {shape.width:>5} {shape.hidden:>6} {shape.tokens:>6}"


def compare(shape: Shape, repeats: int, loop: bool) -> dict[str, float]:
    """One row: milliseconds of each block, and how many times as long the peer takes."""
    torch.manual_seed(0)
    peer = peer_block(shape)
    ours = MoeLayer(config_from_hf(peer.experts.config), width=shape.width)
    ours.load_state_dict(block_from_hf(peer.state_dict()))
    blocks: dict[str, nn.Module] = {"rebus": ours, "peer": peer}
    if loop:
        blocks["loop"] = peer_block(shape, whole_model=False)
    x = torch.randn(1, shape.tokens, shape.width, requires_grad=True)
    _check_equal(ours, peer, x)
    times = _alternate({name: _passes(block, x) for name, block in blocks.items()}, repeats)
    total = {name: statistics.median(forward + backward for forward, backward in each) for name, each in times.items()}
    forward = {name: statistics.median(forward for forward, _ in each) for name, each in times.items()}
    return {
        **{f"{name}_ms": 1000 * seconds for name, seconds in total.items()},
        "ratio": total["peer"] / total["rebus"],
        "forward_ratio": forward["peer"] / forward["rebus"],
    }


def peer_block(shape: Shape, whole_model: bool = True) -> MixtralSparseMoeBlock:
    """transformers' block with random weights, as a whole model has it or by itself."""
    config = _peer_config(shape)
    block = MixtralModel(config).layers[0].mlp if whole_model else MixtralSparseMoeBlock(config)
    assert isinstance(block, MixtralSparseMoeBlock)
    picked = block.experts.config._experts_implementation  # pyright: ignore[reportAttributeAccessIssue]
    assert (picked == "grouped_mm") == whole_model, f"transformers picked {picked}"
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=shape.width**-0.5)
    return block


def _peer_config(shape: Shape) -> MixtralConfig:
    """A model of one layer, small but for its experts."""
    return MixtralConfig(
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=8,
    )


def _check_equal(ours: nn.Module, peer: nn.Module, x: Tensor) -> None:
    """Outputs and all gradients agree, or the table would compare different work."""
    found = []
    for block in (ours, peer):
        out = block(x)
        out.square().mean().backward()
        found.append([out.detach(), x.grad, *(p.grad for p in block.parameters())])
        x.grad = None
        block.zero_grad()
    for ours_value, peer_value in zip(*found, strict=True):
        torch.testing.assert_close(ours_value, peer_value, rtol=1e-3, atol=1e-4)


# Runs a forward and a backward pass; returns the seconds of each.
Passes = Callable[[], tuple[float, float]]


def _passes(block: nn.Module, x: Tensor) -> Passes:
    upstream = torch.randn_like(x)

    def run() -> tuple[float, float]:
        x.grad = None
        block.zero_grad()
        start = _now(x)
        out = block(x)
        middle = _now(x)
        out.backward(upstream)
        return middle - start, _now(x) - middle

    return run


def _now(x: Tensor) -> float:
    """Seconds, once the device has done what it was given."""
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _alternate(paths: Mapping[str, Passes], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Times of each path; they take turns, so that a busy moment meets all."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    for _ in range(repeats + 1):
        for name, run in paths.items():
            times[name].append(run())
    return {name: values[1:] for name, values in times.items()}  # the first warms up


def against_dense(repeats: int) -> list[dict[str, float]] | str:
    """Our layer against a dense block of as many FLOPs a token, in bfloat16 on a GPU."""
    if not torch.cuda.is_available():
        print("SKIPPED: against a dense block of as many FLOPs: no GPU")
        return "skipped: no GPU"
    print(f"\n{HEADER} {'moe ms':>9} {'dense ms':>9} {'ratio':>6}")
    results = []
    for shape in GPU_SHAPES:
        config = config_from_hf(_peer_config(shape))
        moe = MoeLayer(config, width=shape.width).to("cuda", torch.bfloat16)
        sizes = LlamaConfig(width=shape.width, num_heads=16, num_kv_heads=16, hidden_width=shape.top_k * shape.hidden)
        dense = FeedForward(sizes).to("cuda", torch.bfloat16)
        x = torch.randn(1, shape.tokens, shape.width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        times = _alternate({"moe": _passes(moe, x), "dense": _passes(dense, x)}, 4 * repeats)
        ms = {name: 1000 * statistics.median(sum(pair) for pair in each) for name, each in times.items()}
        results.append({**vars(shape), "moe_ms": ms["moe"], "dense_ms": ms["dense"], "ratio": ms["moe"] / ms["dense"]})
        print(f"{_columns(shape)} {ms['moe']:>9.2f} {ms['dense']:>9.2f} {ms['moe'] / ms['dense']:>6.2f}", flush=True)
    return results


if __name__ == "__main__":
    main()
