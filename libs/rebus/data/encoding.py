"""Samples as token rows. Trainer, server and evaluator encode through this one module, so they cannot drift apart.

A row is the shared prefix (branch 0) followed by the branches. Within a branch every change of role opens with its
marker, every assistant turn closes with ``<eos>``::

    <bos> <image>*T | <user> is there a cube? <assistant> yes <eos> | <user> how many ... <assistant> 2 <eos>

Positions restart after the prefix in every branch, and a branch sees the prefix and itself only, so each branch is
computed exactly as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.data.sample import Box, Sample, Segment
from rebus.data.tokenizer import Tokenizer
from rebus.errors import invalid

IGNORE_INDEX = -100
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """Bounds of one row."""

    # Tokens of the whole row, image tokens included.
    max_length_tokens: int = 1024
    max_images: int = 16

    def __post_init__(self) -> None:
        if self.max_length_tokens < 2 or self.max_images < 0:
            raise ValueError(
                f"max_length_tokens={self.max_length_tokens} and max_images={self.max_images} are too small"
            )


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
    # Indices into the sample's media, in order of their placeholders.
    images: tuple[int, ...]
    phrases: tuple[Phrase, ...] = ()
    references: tuple[Reference, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


class Encoder:
    """Turns samples into rows within the bounds."""

    def __init__(self, tokenizer: Tokenizer, *, image_tokens: int, config: EncodingConfig) -> None:
        self.tokenizer = tokenizer
        # Placeholders an image takes: the number of tokens that the connector gives.
        self.image_tokens = image_tokens
        self.config = config

    def encode(self, sample: Sample, tasks: Sequence[str] = ()) -> Row:
        """A training row. With ``tasks``, only branches that hold one of them (branch 0 always stays)."""
        wanted = {s.branch for s in sample.segments if not tasks or s.task in tasks} | {0}
        kept = [segment for segment in sample.segments if segment.branch in wanted]
        return self._row(kept, where=f"sample[{sample.id}]", close=True)

    def encode_prompt(self, segments: Sequence[Segment]) -> Row:
        """A row to continue: the segments as context of the assistant's turn, which is left open."""
        if not segments:
            raise invalid("prompt", "must hold at least one segment")
        return self._row(segments, where="prompt", close=False)

    def _row(self, segments: Sequence[Segment], *, where: str, close: bool) -> Row:
        order = [segment.branch for segment in segments]
        if order != sorted(order):
            raise invalid(f"{where}.segments", f"must be ordered by branch, found branches {order}")
        for position, segment in enumerate(segments):
            if segment.type in ("audio", "video"):
                raise invalid(f"{where}.segments[{position}].type", f"expected text or image, found {segment.type}")
        if sum(segment.type == "image" for segment in segments) > self.config.max_images:
            raise invalid(f"{where}.segments", f"holds more than max_images={self.config.max_images} images")
        builder = _RowBuilder(self.tokenizer, self.image_tokens)
        for segment in segments:
            builder.add(segment)
        row = builder.finish(close=close)
        if len(row) > self.config.max_length_tokens:
            bound = self.config.max_length_tokens
            raise invalid(where, f"takes {len(row)} tokens, more than max_length_tokens={bound}")
        return row


class _RowBuilder:
    """Appends segments to a row; knows the template."""

    def __init__(self, tokenizer: Tokenizer, image_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._image_tokens = image_tokens
        self._markers = {
            "system": tokenizer.user_token_id,
            "user": tokenizer.user_token_id,
            "assistant": tokenizer.assistant_token_id,
        }
        self._ids: list[int] = []
        self._loss: list[bool] = []
        self._positions: list[int] = []
        self._branches: list[int] = []
        self._images: list[int] = []
        # (segment with known regions, index of the token after it, its tokens)
        self._grounded: list[tuple[Segment, int, tuple[int, ...]]] = []
        self._branch = 0
        self._role = ""
        self._turn_has_loss = False
        self._prefix_length = 0
        self._append([tokenizer.bos_token_id], loss=False)

    def add(self, segment: Segment) -> None:
        if segment.branch != self._branch:
            self._close_turn()
            self._branch, self._role = segment.branch, ""
        if segment.type == "image":
            self._images.append(segment.media)
            self._append([self._tokenizer.image_token_id] * self._image_tokens, loss=False)
            return
        if segment.role != self._role:
            self._open_turn(segment.role)
        ids = self._tokenizer.encode(segment.text)
        self._append(ids, loss=segment.loss)
        self._turn_has_loss |= segment.loss
        if segment.regions is not None:
            self._grounded.append((segment, len(self._ids), tuple(ids)))

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
            images=tuple(self._images),
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
        return self._images.index(segment.media) if segment.media in self._images else 0


def attention_allowed(branches: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which token sees which: ``[..., S]`` branch ids (negative: padding) -> ``[..., S, S]``, queries first.

    Causal, and a token sees branch 0 and its own branch only. Padding sees itself, so that no softmax is empty.
    """
    query, key = branches[..., :, None], branches[..., None, :]
    order = np.arange(branches.shape[-1])
    allowed = ((key == 0) | (key == query)) & (order[:, None] >= order) & (query >= 0)
    return allowed | np.eye(len(order), dtype=bool)
