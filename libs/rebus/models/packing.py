"""Encoded rows as one flat batch without padding: the input of ``Mllm.forward_packed``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rebus.data.encoding import IGNORE_INDEX, Row
from rebus.data.sample import Box
from rebus.models.branches import BranchLayout, branch_layout, length_class


@dataclass(frozen=True, kw_only=True)
class PackedRegion:
    """Words said of a region: the image's place in the batch, the box (fractions of its sides), the token ids."""

    image: int
    region: Box
    token_ids: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class PackedReference:
    """A question about regions, in flat indices of the batch."""

    # The token that the answer follows.
    query: int
    # The row's first token, which shows nothing.
    sink: int
    # The image's first token; the others follow it.
    image: int
    regions: Sequence[Box]


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """The tokens of a batch: the prefixes of its rows, then their branches, those of like length together.

    The last token of a branch is no input, since nothing follows it; it is only a target. Placeholders are inputs
    wherever they stand, so that each has its feature.
    """

    # int64 [T] each; see ``rebus.data.encoding.Row``
    input_ids: Tensor
    positions: Tensor
    # int64 [T]: the token that follows, where it is to be predicted, else ``IGNORE_INDEX``
    targets: Tensor
    # int64 [T]: which prefix or branch of the batch a token belongs to
    runs: Tensor
    # int64 [T, 2]: the row a token comes from, and its place there
    origins: NDArray[np.int64]
    layout: BranchLayout
    # (row, index into the row's ``images``) of each image, video and sound, in order of the placeholders
    images: Sequence[tuple[int, int]]
    regions: Sequence[PackedRegion]
    references: Sequence[PackedReference]


def pack_rows(rows: Sequence[Row], *, image_token_id: int) -> PackedRows:
    """Lays ``rows`` out flat; at least one."""
    runs = [_runs(row) for row in rows]
    prefixes = _by_length([(index, found[0]) for index, found in enumerate(runs)])
    branches = [
        (index, _inputs(rows[index], run, image_token_id)) for index, found in enumerate(runs) for run in found[1:]
    ]
    branches = _by_length([item for item in branches if item[1].stop > item[1].start])
    place = {index: at for at, (index, _) in enumerate(prefixes)}
    order = prefixes + branches
    lengths = np.array([run.stop - run.start for _, run in order], dtype=np.int64)
    images = _image_order(rows, order, image_token_id)
    origins = np.array([(index, at) for index, run in order for at in range(run.start, run.stop)], dtype=np.int64)
    targets = [_targets(row) for row in rows]
    return PackedRows(
        input_ids=_flat([rows[index].input_ids[run] for index, run in order]),
        positions=_flat([rows[index].positions[run] for index, run in order]),
        targets=_flat([targets[index][run] for index, run in order]),
        runs=torch.from_numpy(np.repeat(np.arange(len(order)), lengths)),
        origins=origins,
        layout=branch_layout(
            lengths[: len(rows)],
            lengths[len(rows) :],
            np.array([place[index] for index, _ in branches], dtype=np.int64),
        ),
        images=images,
        regions=_regions(rows, images),
        references=_references(rows, origins, image_token_id),
    )


def _by_length(runs: Sequence[tuple[int, slice]]) -> list[tuple[int, slice]]:
    """Runs of like length together, else as they come: attention pads each class by itself."""
    return sorted(runs, key=lambda item: length_class(item[1].stop - item[1].start))


def _targets(row: Row) -> NDArray[np.int64]:
    """Each token's successor in its own run, if that is labelled."""
    successors = np.append(row.labels[1:], IGNORE_INDEX)
    ends = np.append(np.diff(row.branches) != 0, True)
    return np.where(ends, IGNORE_INDEX, successors)


def _runs(row: Row) -> list[slice]:
    """The prefix and the branches of a row as slices of its tokens."""
    starts = np.flatnonzero(np.diff(row.branches, prepend=-1))
    return [slice(int(a), int(b)) for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]


def _inputs(row: Row, branch: slice, image_token_id: int) -> slice:
    """A branch without its last token, unless that is a placeholder."""
    ends_in_image = bool(row.input_ids[branch.stop - 1] == image_token_id)
    return slice(branch.start, branch.stop if ends_in_image else branch.stop - 1)


def _image_order(rows: Sequence[Row], order: Sequence[tuple[int, slice]], image_token_id: int) -> list[tuple[int, int]]:
    """Images in flat order: those of a branch come after every prefix's."""
    images: list[tuple[int, int]] = []
    for index, run in order:
        row = rows[index]
        if row.images:
            is_image = row.input_ids == image_token_id
            starts = _starts(row, int(is_image.sum()))
            first, stop = np.searchsorted(starts, [is_image[: run.start].sum(), is_image[: run.stop].sum()])
            images += [(index, int(at)) for at in range(first, stop)]
    return images


def _starts(row: Row, num_placeholders: int) -> NDArray[np.int64]:
    """How many of the row's placeholders come before each of its images."""
    if row.media:
        return np.cumsum([0, *(medium.num_tokens for medium in row.media[:-1])], dtype=np.int64)
    return np.arange(len(row.images), dtype=np.int64) * (num_placeholders // max(len(row.images), 1))


def _regions(rows: Sequence[Row], images: Sequence[tuple[int, int]]) -> list[PackedRegion]:
    place = {key: at for at, key in enumerate(images)}
    return [
        PackedRegion(image=place[index, phrase.image], region=phrase.region, token_ids=phrase.token_ids)
        for index, row in enumerate(rows)
        for phrase in row.phrases
        if (index, phrase.image) in place
    ]


def _references(rows: Sequence[Row], origins: NDArray[np.int64], image_token_id: int) -> list[PackedReference]:
    if not any(row.references for row in rows):
        return []
    flat = {(int(row), int(at)): place for place, (row, at) in enumerate(origins)}
    found: list[PackedReference] = []
    for index, row in enumerate(rows):
        shown = np.flatnonzero(row.input_ids == image_token_id)
        starts = _starts(row, len(shown))
        for reference in row.references:
            first = int(shown[starts[reference.image]])
            query, sink, image = (flat[index, at] for at in (reference.at, 0, first))
            found.append(PackedReference(query=query, sink=sink, image=image, regions=reference.regions))
    return found


def _flat(parts: Sequence[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))
