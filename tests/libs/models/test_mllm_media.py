"""Any interleaving of words, images, tiles, videos and sounds in one sequence."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rebus.data.encoding import Encoder, EncodingConfig, MediumSize, Row, attention_allowed
from rebus.data.sample import Sample, Segment, SegmentType
from rebus.errors import InvalidArgumentError
from rebus.models.mllm import Mllm
from rebus.models.packing import pack_rows
from tests.tiny_model import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IMAGE = TOKENIZER.image_token_id
ASK, TOLD = Segment(text="is there a red cube?"), Segment(text="yes", role="assistant", loss=True)
WIDTH = 32


@dataclass(frozen=True)
class Sizes:
    """A medium takes as many tokens as it has bytes."""

    types: Collection[SegmentType] = ("image", "video", "audio")

    def size(self, segment: Segment, data: bytes, *, num_images: int, field: str) -> MediumSize:
        return MediumSize(len(data), 0 if segment.type == "audio" else 1)


def shown(kind: SegmentType, media: int, branch: int = 0) -> Segment:
    return Segment(type=kind, media=media, branch=branch)


def in_branch(segment: Segment, branch: int) -> Segment:
    return Segment(**{**vars(segment), "branch": branch})


def encode(*segments: Segment, sizes: tuple[int, ...] = (), max_images: int = 16) -> Row:
    encoder = Encoder(TOKENIZER, image_tokens=0, config=EncodingConfig(max_images=max_images), sizes=Sizes())
    return encoder.encode(Sample(id="x", segments=segments, media=[bytes(size) for size in sizes]))


def dense(model: Mllm, row: Row, features: Tensor | None) -> Tensor:
    """Hidden states ``[S, D]`` of one row by the masked path."""
    ids, positions = (torch.from_numpy(a)[None] for a in (row.input_ids, row.positions))
    mask = torch.from_numpy(attention_allowed(row.branches))[None]
    return model.decode(model.embed(ids, features), positions, mask)[0]


def test_media_of_unlike_lengths_pack_in_order_also_in_branches() -> None:
    model = tiny_model(TOKENIZER).double()
    batch = [
        encode(shown("image", 0), ASK, shown("audio", 1), in_branch(ASK, 1), shown("video", 2, 1), sizes=(2, 5, 3)),
        encode(ASK, *(in_branch(s, 1) for s in (shown("image", 1), ASK, shown("image", 0), TOLD)), sizes=(1, 4)),
        encode(ASK, TOLD),
    ]
    assert [[medium.num_tokens for medium in row.media] for row in batch] == [[2, 5, 3], [4, 1], []]
    features = {
        (index, at): torch.randn(medium.num_tokens, WIDTH, dtype=torch.float64)
        for index, row in enumerate(batch)
        for at, medium in enumerate(row.media)
    }
    packed = pack_rows(batch, image_token_id=IMAGE)
    assert sorted(packed.images) == sorted(features)
    flat = model.forward_packed(packed, torch.cat([features[place] for place in packed.images]))

    of_row = [[value for (row, _), value in features.items() if row == index] for index in range(len(batch))]
    each = [dense(model, row, torch.cat(f) if f else None) for row, f in zip(batch, of_row, strict=True)]
    torch.testing.assert_close(flat, torch.stack([each[row][at] for row, at in packed.origins]))


def test_references_and_phrases_find_their_image_behind_other_media() -> None:
    box = (0.0, 0.0, 0.5, 0.5)
    ask = Segment(**{**vars(ASK), "regions": (box,)})
    told = Segment(**{**vars(TOLD), "regions": (box,), "media": 2})
    row = encode(shown("audio", 0), shown("image", 1), shown("image", 2), ask, told, sizes=(3, 2, 4))
    packed = pack_rows([row], image_token_id=IMAGE)
    assert [reference.image for reference in packed.references] == [1 + 3]
    assert [region.image for region in packed.regions] == [2]


def test_a_row_of_too_many_images_is_refused_and_sound_is_none() -> None:
    media = shown("image", 0), shown("audio", 0), shown("video", 0)
    assert len(encode(*media, sizes=(1,), max_images=2).images) == 3
    with pytest.raises(InvalidArgumentError, match="more than max_images=1"):
        encode(*media, sizes=(1,), max_images=1)
