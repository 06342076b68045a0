"""When a sample holds an item of a benchmark: the settings, as the contract's message and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rebus.data.image_hash import MAX_DISTANCE
from rebus.data.shingles import Unit
from rebus.errors import invalid
from rebus.v1.contamination_pb2 import ContaminationMatch

By = Literal["text", "image", "embedding"]

_WAYS: dict[str, By] = {way.upper(): way for way in get_args(By)}
_UNITS: dict[str, Unit] = {unit.upper(): unit for unit in get_args(Unit)}
# Texts take a second for ten thousand rows; images take several, and pictures drawn alike are told apart badly.
_DEFAULT_WAYS: tuple[By, ...] = ("text",)


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """When a sample holds an item of a benchmark; any of ``by`` is enough."""

    by: tuple[By, ...] = ("text", "image")
    # Of an item's n-grams, the share that the sample has. Those that over 64 items have do not count.
    min_overlap: float = 0.5
    ngram: int = 8
    unit: Unit = "words"
    # Bits of 128 by which the hashes of an image of each differ.
    max_distance: int = 10
    # Cosine of an embedding of each, in columns that both versions have.
    min_cosine: float = 0.95
    embedding_column: str = "image_embeddings"
    # Rows of the benchmark that are its items; all if empty.
    split: str = ""

    def __post_init__(self) -> None:
        if not self.by:
            raise ValueError("by must name at least one of text, image, embedding")
        if not (0 < self.min_overlap <= 1 and 0 < self.min_cosine <= 1 and 1 <= self.ngram <= 64):
            raise ValueError(f"min_overlap={self.min_overlap}, min_cosine={self.min_cosine} or ngram is out of range")
        if not 0 <= self.max_distance <= MAX_DISTANCE:
            raise ValueError(f"max_distance={self.max_distance} is outside 0 .. {MAX_DISTANCE}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that matching needs, of the benchmark as of the samples."""
        media = ("media",) if "image" in self.by else ()
        embedding = (self.embedding_column,) if "embedding" in self.by else ()
        return tuple(dict.fromkeys(("id", "segments", *media, *embedding)))


def match_to_message(config: MatchConfig) -> ContaminationMatch:
    """The message, with every field set; the split is not part of it."""
    return ContaminationMatch(
        by=[way.upper() for way in config.by],
        min_overlap=config.min_overlap,
        ngram=config.ngram,
        unit=config.unit.upper(),
        max_distance=config.max_distance,
        min_cosine=config.min_cosine,
        embedding_column=config.embedding_column,
    )


def match_from_message(match: ContaminationMatch, *, split: str, field: str) -> MatchConfig:
    """The settings, defaults filled in, for items of ``split``; ``InvalidArgumentError`` names ``field``."""
    names = [ContaminationMatch.By.Name(way) for way in match.by]
    usual = MatchConfig()
    try:
        return MatchConfig(
            by=tuple(dict.fromkeys(_WAYS[name] for name in names if name in _WAYS)) or _DEFAULT_WAYS,
            min_overlap=match.min_overlap or usual.min_overlap,
            ngram=match.ngram or usual.ngram,
            unit=_UNITS.get(ContaminationMatch.Unit.Name(match.unit), usual.unit),
            max_distance=match.max_distance if match.HasField("max_distance") else usual.max_distance,
            min_cosine=match.min_cosine or usual.min_cosine,
            embedding_column=match.embedding_column or usual.embedding_column,
            split=split,
        )
    except ValueError as error:
        raise invalid(field, str(error)) from None
