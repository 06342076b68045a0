"""Encoded rows as one flat batch without padding: the input of ``Mllm.forward_packed``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rebus.data.encoding import Row
from rebus.models.branches import BranchLayout, branch_layout


@dataclass(frozen=True, kw_only=True)
class PackedRegion:
    """Words said of a region: the image's place in the batch, the box (fractions of its sides), the token ids."""

    image: int
    region: tuple[float, float, float, float]
    token_ids: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """All tokens of a batch: the prefixes of its rows, then their branches; see ``rebus.data.encoding.Row``."""

    # int64 [T] each
    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    # int64 [T]: which prefix or branch of the batch a token belongs to
    runs: Tensor
    layout: BranchLayout
    # (row, index into the row's ``images``) of each image, in order of the placeholders
    images: Sequence[tuple[int, int]]
    regions: Sequence[PackedRegion]


def pack_rows(rows: Sequence[Row], *, image_token_id: int) -> PackedRows:
    """Lays ``rows`` out flat; at least one."""
    runs = [_runs(row) for row in rows]
    prefixes = [(index, found[0]) for index, found in enumerate(runs)]
    branches = [(index, run) for index, found in enumerate(runs) for run in found[1:]]
    order = prefixes + branches
    lengths = np.array([run.stop - run.start for _, run in order], dtype=np.int64)
    images = _image_order(rows, order, image_token_id)
    return PackedRows(
        input_ids=_flat([rows[index].input_ids[run] for index, run in order]),
        labels=_flat([rows[index].labels[run] for index, run in order]),
        positions=_flat([rows[index].positions[run] for index, run in order]),
        runs=torch.from_numpy(np.repeat(np.arange(len(order)), lengths)),
        layout=branch_layout(
            lengths[: len(rows)], lengths[len(rows) :], np.array([index for index, _ in branches], dtype=np.int64)
        ),
        images=images,
        regions=_regions(rows, images),
    )


def _runs(row: Row) -> list[slice]:
    """The prefix and the branches of a row as slices of its tokens."""
    starts = np.flatnonzero(np.diff(row.branches, prepend=-1))
    return [slice(int(a), int(b)) for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]


def _image_order(rows: Sequence[Row], order: Sequence[tuple[int, slice]], image_token_id: int) -> list[tuple[int, int]]:
    """Images in flat order: those of a branch come after every prefix's."""
    images: list[tuple[int, int]] = []
    for index, run in order:
        row = rows[index]
        if row.images:
            is_image = row.input_ids == image_token_id
            size = int(is_image.sum()) // len(row.images)
            first, count = int(is_image[: run.start].sum()) // size, int(is_image[run].sum()) // size
            images += [(index, first + offset) for offset in range(count)]
    return images


def _regions(rows: Sequence[Row], images: Sequence[tuple[int, int]]) -> list[PackedRegion]:
    place = {key: at for at, key in enumerate(images)}
    return [
        PackedRegion(image=place[index, phrase.image], region=phrase.region, token_ids=phrase.token_ids)
        for index, row in enumerate(rows)
        for phrase in row.phrases
        if (index, phrase.image) in place
    ]


def _flat(parts: Sequence[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))
