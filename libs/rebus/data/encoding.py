"""Samples as token rows. Trainer, server and evaluator encode through this one module, so they cannot drift apart.

A row is the shared prefix (branch 0) followed by the branches. Within a branch every change of role opens with its
marker, every assistant turn closes with ``<eos>``::

    <bos> <image>*T | <user> is there a cube? <assistant> yes <eos> | <user> how many ... <assistant> 2 <eos>

Positions restart after the prefix in every branch, and a branch sees the prefix and itself only, so each branch is
computed exactly as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rebus.data.sample import Box, Sample, Segment, SegmentType
from rebus.data.tokenizer import Tokenizer
from rebus.errors import invalid

IGNORE_INDEX = -100
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """Bounds of one row."""

    # Tokens of the whole row, image tokens included.
    max_length_tokens: int = 1024
    # Squares that the image encoder reads: tiles of images and frames of videos count one each.
    max_images: int = 16

    def __post_init__(self) -> None:
        if self.max_length_tokens < 2 or self.max_images < 0:
            raise ValueError(
                f"max_length_tokens={self.max_length_tokens} and max_images={self.max_images} are too small"
            )


@dataclass(frozen=True)
class MediumSize:
    """What an image, a video or a sound takes of a row."""

    tokens: int
    # Squares that the image encoder reads: tiles or frames; of sound none.
    images: int


class MediaSizes(Protocol):
    """Knows how many tokens each medium takes before it is prepared, as ``preprocess.reading.MediaReader`` does."""

    @property
    def types(self) -> Collection[SegmentType]:
        """Types of media that the model reads."""
        ...

    def size(self, segment: Segment, data: bytes, *, num_images: int, field: str) -> MediumSize:
        """What ``segment``, whose encoded bytes are ``data``, takes in a row of ``num_images`` images.

        Raises ``InvalidArgumentError`` naming ``field`` for bytes that cannot be read.
        """
        ...


@dataclass(frozen=True)
class SquareImages:
    """Every image is one square of as many tokens, whatever its bytes; there are no other media."""

    image_tokens: int
    types: Collection[SegmentType] = ("image",)

    def size(self, segment: Segment, data: bytes, *, num_images: int, field: str) -> MediumSize:
        """One square."""
        return MediumSize(self.image_tokens, 1)


@dataclass(frozen=True)
class RowMedium:
    """An image, a video or a sound of a row."""

    segment: Segment
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """The tokens of a learned segment that speaks of one region: which image, where, what."""

    # Index among the row's images.
    image: int
    region: Box
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A question about regions of an image."""

    # Index among the row's images.
    image: int
    # Empty: the question describes nothing that is there.
    regions: tuple[Box, ...]
    # Index of the token that the answer follows.
    at: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One encoded sample; all arrays have one entry a token."""

    input_ids: Ints
    # The token's own id where it is to be predicted (from the token before it), else ``IGNORE_INDEX``.
    labels: Ints
    positions: Ints
    branches: Ints
    # Indices into the sample's media, in order of their placeholders: of images, and of videos and sounds likewise.
    images: tuple[int, ...]
    # What each of ``images`` is and takes; left out, all of them take equally many placeholders.
    media: tuple[RowMedium, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    references: tuple[Reference, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_images(self) -> int:
        """Images among ``media``, on which it may depend how each is split."""
        return sum(medium.segment.type == "image" for medium in self.media)


class Encoder:
    """Turns samples into rows within the bounds."""

    def __init__(
        self, tokenizer: Tokenizer, *, image_tokens: int, config: EncodingConfig, sizes: MediaSizes | None = None
    ) -> None:
        """``image_tokens`` is what the connector gives for a square, all that an image is unless ``sizes`` knows."""
        self.tokenizer = tokenizer
        self.config = config
        self._sizes: MediaSizes = SquareImages(image_tokens) if sizes is None else sizes

    def encode(self, sample: Sample, tasks: Sequence[str] = ()) -> Row:
        """A training row. With ``tasks``, only branches that hold one of them (branch 0 always stays)."""
        wanted = {s.branch for s in sample.segments if not tasks or s.task in tasks} | {0}
        kept = [segment for segment in sample.segments if segment.branch in wanted]
        return self._row(kept, sample.media, where=f"sample[{sample.id}]", close=True)

    def encode_prompt(self, segments: Sequence[Segment], media: Sequence[bytes] = ()) -> Row:
        """A row to continue: the segments as context of the assistant's turn, which is left open.

        ``media`` may be left out where every image takes as many tokens.
        """
        if not segments:
            raise invalid("prompt", "must hold at least one segment")
        return self._row(segments, media, where="prompt", close=False)

    def _row(self, segments: Sequence[Segment], media: Sequence[bytes], *, where: str, close: bool) -> Row:
        order = [segment.branch for segment in segments]
        if order != sorted(order):
            raise invalid(f"{where}.segments", f"must be ordered by branch, found branches {order}")
        known = ("text", *self._sizes.types)
        for position, segment in enumerate(segments):
            if segment.type not in known:
                expected = f"{', '.join(known[:-1])} or {known[-1]}"
                raise invalid(f"{where}.segments[{position}].type", f"expected {expected}, found {segment.type}")
        builder = _RowBuilder(self.tokenizer)
        sizes = iter(self._media_sizes([s for s in segments if s.type != "text"], media, where))
        for segment in segments:
            builder.add_text(segment) if segment.type == "text" else builder.add_medium(segment, next(sizes))
        row = builder.finish(close=close)
        if len(row) > self.config.max_length_tokens:
            bound = self.config.max_length_tokens
            raise invalid(where, f"takes {len(row)} tokens, more than max_length_tokens={bound}")
        return row

    def _media_sizes(self, segments: Sequence[Segment], media: Sequence[bytes], where: str) -> list[int]:
        """Tokens of each medium; none is looked at beyond the bound of images."""
        num_images = sum(segment.type == "image" for segment in segments)
        squares, tokens = 0, []
        for segment in segments:
            field = f"{where}.media[{segment.media}]"
            data = media[segment.media] if 0 <= segment.media < len(media) else b""
            size = self._sizes.size(segment, data, num_images=num_images, field=field)
            squares += size.images
            tokens.append(size.tokens)
            if squares > self.config.max_images:
                raise invalid(f"{where}.segments", f"holds more than max_images={self.config.max_images} images")
        return tokens


class _RowBuilder:
    """Appends segments to a row; knows the template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._markers = {
            "system": tokenizer.user_token_id,
            "user": tokenizer.user_token_id,
            "assistant": tokenizer.assistant_token_id,
        }
        self._ids: list[int] = []
        self._loss: list[bool] = []
        self._positions: list[int] = []
        self._branches: list[int] = []
        self._media: list[RowMedium] = []
        # (segment with known regions, index of the token after it, its tokens)
        self._grounded: list[tuple[Segment, int, tuple[int, ...]]] = []
        self._branch = 0
        self._role = ""
        self._turn_has_loss = False
        self._prefix_length = 0
        self._append([tokenizer.bos_token_id], loss=False)

    def add_medium(self, segment: Segment, num_tokens: int) -> None:
        # One placeholder serves every kind of media: features replace its embedding, so that its id says nothing, and
        # their order says which are whose. A tokenizer made for images needs no new ids for sound.
        self._enter(segment.branch)
        self._media.append(RowMedium(segment, num_tokens))
        self._append([self._tokenizer.image_token_id] * num_tokens, loss=False)

    def add_text(self, segment: Segment) -> None:
        self._enter(segment.branch)
        if segment.role != self._role:
            self._open_turn(segment.role)
        ids = self._tokenizer.encode(segment.text)
        self._append(ids, loss=segment.loss)
        self._turn_has_loss |= segment.loss
        if segment.regions is not None:
            self._grounded.append((segment, len(self._ids), tuple(ids)))

    def _enter(self, branch: int) -> None:
        if branch != self._branch:
            self._close_turn()
            self._branch, self._role = branch, ""

    def _open_turn(self, role: str) -> None:
        self._close_turn()
        self._role = role
        self._append([self._markers[role]], loss=False)

    def _close_turn(self) -> None:
        if self._role == "assistant":
            self._append([self._tokenizer.eos_token_id], loss=self._turn_has_loss)
        self._role, self._turn_has_loss = "", False

    def _append(self, ids: Sequence[int], *, loss: bool) -> None:
        start = self._positions[-1] + 1 if self._positions else 0
        if self._branches and self._branches[-1] != self._branch:
            start = self._prefix_length
        self._ids += ids
        self._loss += [loss] * len(ids)
        self._positions += range(start, start + len(ids))
        self._branches += [self._branch] * len(ids)
        if self._branch == 0:
            self._prefix_length += len(ids)

    def finish(self, *, close: bool) -> Row:
        """The row; ``close`` ends the last turn, else an assistant's turn is opened or kept open."""
        if close:
            self._close_turn()
        elif self._role != "assistant":
            self._open_turn("assistant")
        input_ids = np.array(self._ids, dtype=np.int64)
        return Row(
            input_ids=input_ids,
            labels=np.where(self._loss, input_ids, IGNORE_INDEX),
            positions=np.array(self._positions, dtype=np.int64),
            branches=np.array(self._branches, dtype=np.int64),
            images=tuple(medium.segment.media for medium in self._media),
            media=tuple(self._media),
            phrases=tuple(self._found_phrases()),
            references=tuple(self._found_references()),
        )

    def _found_phrases(self) -> Iterator[Phrase]:
        for segment, _, ids in self._grounded:
            if segment.loss and segment.regions and len(segment.regions) == 1:
                yield Phrase(image=self._image_of(segment), region=segment.regions[0], token_ids=ids)

    def _found_references(self) -> Iterator[Reference]:
        """Questions that an answer follows: the token behind each opens the assistant's turn."""
        for segment, after, _ in self._grounded:
            answered = after < len(self._ids) and self._ids[after] == self._markers["assistant"]
            if not segment.loss and segment.regions is not None and answered:
                yield Reference(image=self._image_of(segment), regions=segment.regions, at=after)

    def _image_of(self, segment: Segment) -> int:
        """``segment.media`` says which image its regions lie in; without it, the row's first."""
        images = [at for at, medium in enumerate(self._media) if medium.segment.type == "image"]
        named = [at for at in images if self._media[at].segment.media == segment.media]
        return next(iter(named or images), 0)


def attention_allowed(branches: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which token sees which: ``[..., S]`` branch ids (negative: padding) -> ``[..., S, S]``, queries first.

    Causal, and a token sees branch 0 and its own branch only. Padding sees itself, so that no softmax is empty.
    """
    query, key = branches[..., :, None], branches[..., None, :]
    order = np.arange(branches.shape[-1])
    allowed = ((key == 0) | (key == query)) & (order[:, None] >= order) & (query >= 0)
    return allowed | np.eye(len(order), dtype=bool)
