"""The layer's benchmark: its peer is configured as in a whole model, and both compute the same."""

from __future__ import annotations

import torch

from tools.bench.moe import Shape, against_dense, compare, peer_block

SHAPE = Shape(experts=4, top_k=2, width=16, hidden=24, tokens=32)


def test_the_peer_is_what_a_whole_model_runs() -> None:
    assert peer_block(SHAPE).experts.config._experts_implementation == "grouped_mm"
    assert peer_block(SHAPE, whole_model=False).experts.config._experts_implementation is None


def test_a_row_compares_equal_work_and_has_its_ratios() -> None:
    row = compare(SHAPE, repeats=1, loop=True)
    assert set(row) == {"rebus_ms", "peer_ms", "loop_ms", "ratio", "forward_ratio"}
    assert row["ratio"] > 0


def test_without_a_gpu_the_dense_comparison_says_so() -> None:
    if not torch.cuda.is_available():
        assert against_dense(repeats=1) == "skipped: no GPU"
