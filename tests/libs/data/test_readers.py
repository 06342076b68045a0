"""Readers: every kind of bad input is quarantined with its place and reason, and the good samples stay."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rebus import registry
from rebus.data.readers import Location, Quarantined
from rebus.data.readers.files import list_files, open_inside, read_inside
from rebus.data.splits import SplitShares
from rebus.errors import InvalidArgumentError, NotFoundError
from tests.libs.data.reading import png, read


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (folder / name).write_bytes(png(seed))
    (folder / "cut.png").write_bytes(png()[:60])
    (folder / "big.png").write_bytes(png(size=64))
    (folder / "note.png").write_text("not a picture")
    (tmp_path / "secret.png").write_bytes(png(9))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "out").symlink_to(tmp_path)
    return folder


GOOD = [("a.png", "a cat"), ("sub/c.png", "a dog, asleep"), ("a.png", "the cat again")]
BAD = [
    ("missing.png", "x", "missing.png: no such file"),
    ("cut.png", "x", "cut.png: corrupt or truncated PNG"),
    ("note.png", "x", "note.png: not a PNG, JPEG or WebP image"),
    ("big.png", "x", "big.png: 64x64 pixels, more than the limit of 1000"),
    ("b.png", "  ", "caption: is empty"),
    ("", "x", "image: is empty"),
    ("b.png", "y" * 51, "caption: 51 characters, more than the limit of 50"),
    ("../secret.png", "x", "../secret.png: expected a path inside"),
    ("/etc/passwd", "x", "/etc/passwd: expected a path inside"),
    ("link.png", "x", "link.png: symbolic links are not read"),
    ("out/secret.png", "x", "out/secret.png: leads through a file or a symbolic link"),
    ("a.png/x", "x", "leads through a file"),
    ("sub", "x", "sub: not a regular file"),
]
LIMITS = {"image": {"max_pixels": 1000}, "max_text_chars": 50}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_image_folder_keeps_the_good_and_names_the_bad(pictures: Path, suffix: str) -> None:
    rows = [(image, caption) for image, caption, _ in BAD]
    rows = [GOOD[0], *rows[:5], GOOD[1], *rows[5:], GOOD[2]]
    if suffix == "jsonl":
        lines = [json.dumps({"image": image, "caption": caption}) for image, caption in rows]
        first = 1
    else:
        mark = {"csv": ",", "tsv": "\t"}[suffix]
        lines = [mark.join(("image", "caption")), *(f'{image}{mark}"{caption}"' for image, caption in rows)]
        first = 2
    (pictures / f"captions.{suffix}").write_text("\n".join(lines), encoding="utf-8-sig")

    samples, bad = read(pictures, "image-folder", captions=f"captions.{suffix}", limits=LIMITS, license="CC0-1.0")

    assert [(s.metadata["file"], s.segments[1].text) for s in samples] == GOOD
    assert [s.media for s in samples] == [[(pictures / image).read_bytes()] for image, _ in GOOD]
    assert samples[0].source == "pets"
    assert samples[0].license == "CC0-1.0"
    assert (samples[0].segments[0].type, samples[0].segments[1].loss) == ("image", True)
    expected = {f"captions.{suffix}:{first + rows.index((i, c))}": reason for i, c, reason in BAD}
    assert list(bad) == list(expected)
    for location, reason in expected.items():
        assert reason in bad[location]


def test_captions_of_one_image_are_one_family_and_one_split(pictures: Path) -> None:
    (pictures / "captions.csv").write_text(
        "image,caption\n" + "".join(f"{i},{c}\n" for i, c in [*GOOD[::2], ("b.png", "z")])
    )
    (pictures / "copy.png").write_bytes((pictures / "a.png").read_bytes())
    with (pictures / "captions.csv").open("a") as file:
        file.write("copy.png,the same picture by another name\n")

    samples, bad = read(pictures, "image-folder")

    assert bad == {}
    assert [s.family == samples[0].family for s in samples] == [True, True, False, True]
    assert len({s.split for s in samples if s.family == samples[0].family}) == 1


def test_image_folder_columns_are_configurable(pictures: Path) -> None:
    (pictures / "t.jsonl").write_text(
        json.dumps({"f": "a.png", "t": "cat", "key": "k1", "fam": "felis", "set": "test", "score": 3}) + "\n"
        + json.dumps({"f": "b.png", "t": "dog", "key": "k2", "fam": "canis", "set": "dev", "score": 4}) + "\n"
    )  # fmt: skip
    columns = {"image": "f", "caption": "t", "id": "key", "family": "fam", "split": "set"}
    settings = {f"{use}_column": name for use, name in columns.items()}

    samples, bad = read(
        pictures, "image-folder", "t.jsonl", **settings, metadata_columns=["score"], prompt="What is it?", source="s"
    )

    assert [(s.id, s.family, s.split, s.metadata["score"]) for s in samples] == [("s/k1", "s/felis", "test", 3)]
    assert [(g.role, g.text) for g in samples[0].segments[1:]] == [("user", "What is it?"), ("assistant", "cat")]
    assert "split: expected one of train, validation, test, found 'dev'" in bad["t.jsonl:2"]


def test_broken_rows_of_a_csv_do_not_take_others_with_them(pictures: Path) -> None:
    rows = [
        b"image,caption",
        b"a.png,one",
        b"a.png",
        b"a.png,x,y",
        b'a.png,"two"x',
        b"a.png,\xff\xfe",
        b"",
        b"b.png,two",
    ]
    rows += [b"a.png," + b"z" * 2000, b'sub/c.png,"over\ntwo lines"']
    (pictures / "captions.csv").write_bytes(b"\r\n".join(rows))

    samples, bad = read(pictures, "image-folder", limits={"max_line_bytes": 1000})

    assert [s.segments[1].text for s in samples] == ["one", "two", "over\ntwo lines"]
    assert {k.partition(":")[2]: v for k, v in bad.items()} == {
        "3": "1 fields where the header has 2",
        "4": "3 fields where the header has 2",
        "5": "not a valid row: ',' expected after '\"'",
        "6": "caption: is not valid Unicode",
        "9": "more than the limit of 1000 bytes in a line",
    }


def test_broken_lines_of_jsonl_do_not_take_others_with_them(pictures: Path) -> None:
    lines = [
        '{"image": "a.png", "caption": "one"}',
        '{"image": "a.png"',
        "[1, 2]",
        '{"image": "a.png", "caption": 7}',
        '{"image": "a.png"}',
        '{"image": "a.png", "caption": "\\ud800"}',
        '{"image": "a.png", "caption": "nan", "score": NaN}',
        "",
        "[" * 100_000,
        '{"image": "a.png", "caption": "x", "score": "\\udfff"}',
        '{"image": "b.png", "caption": "two"}',
    ]
    (pictures / "c.jsonl").write_text("\n".join(lines))

    samples, bad = read(pictures, "image-folder", "c.jsonl", metadata_columns=["score"])

    assert [s.segments[1].text for s in samples] == ["one", "two"]
    reasons = {int(k.partition(":")[2]): v for k, v in bad.items()}
    assert sorted(reasons) == [2, 3, 4, 5, 6, 7, 9, 10]
    assert "Expecting ',' delimiter at line 1, column 18" in reasons[2]
    assert reasons[3] == "expected a JSON object, found list"
    assert reasons[4] == "caption: expected text, found int"
    assert reasons[5] == "caption: is missing"
    assert reasons[6] == "caption: is not valid Unicode"
    assert "NaN is not JSON" in reasons[7]
    assert "recursion" in reasons[9]
    assert "metadata" in reasons[10]


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"captions": "none.csv"}, NotFoundError, "none.csv: no such file"),
        ({"captions": "../x.csv"}, InvalidArgumentError, "inside the source's folder"),
        ({"captions": "a.png"}, InvalidArgumentError, r"ending in .csv, .tsv, .jsonl"),
        ({"caption_column": "label"}, InvalidArgumentError, "no column 'label'; its columns: image, caption"),
        ({"captoin_column": "label"}, InvalidArgumentError, "did you mean 'caption_column'"),
        ({"splits": {"test": 2}}, InvalidArgumentError, "sum to less than 1"),
    ],
)
def test_a_wrong_setting_fails_before_anything_is_read(
    pictures: Path, settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    (pictures / "captions.csv").write_text("image,caption\na.png,x\n")

    with pytest.raises(error, match=match):
        registry.build("reader", {"name": "image-folder", **settings}, Location(pictures))


def llava_turns(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)]


def test_llava_conversations(pictures: Path) -> None:
    entries: list[Any] = [
        {"id": "1", "image": "a.png", "conversations": llava_turns("<image>\nWhat is it?", "A cat.", "Sure?", "Yes.")},
        {"id": "2", "image": ["a.png", "b.png"], "conversations": llava_turns("First <image> then <image>?", "Two.")},
        {"id": "3", "image": "b.png", "conversations": llava_turns("No mark.", "Fine.")},
        {"id": 4, "conversations": [{"from": "system", "value": "Be brief."}, *llava_turns("Hello", "Hi.")]},
        {"id": "b1", "image": "a.png", "conversations": llava_turns("<image> and <image>", "x")},
        {"id": "b2", "image": "missing.png", "conversations": llava_turns("<image>", "x")},
        {"id": "b3", "image": "cut.png", "conversations": llava_turns("<image>", "x")},
        {"id": "b4", "conversations": llava_turns("only a question")},
        {"id": "b5", "conversations": llava_turns("q", "")},
        {"id": "b6", "conversations": [{"from": "robot", "value": "x"}]},
        {"id": "b7", "conversations": [{"from": ["gpt"], "value": "x"}]},
        {"id": "b8"},
        "b9",
        {"id": "b10", "image": 7, "conversations": llava_turns("q", "a")},
        {"id": "b11", "image": "../secret.png", "conversations": llava_turns("q", "a")},
        {"id": "b12", "image": ["a.png"] * 3, "conversations": llava_turns("q", "a")},
    ]
    (pictures / "conversations.json").write_text(json.dumps(entries))

    samples, bad = read(pictures, "llava", limits={"max_media": 2})

    shapes = [[(s.type, s.role, s.text or s.media, s.loss) for s in sample.segments] for sample in samples]
    assert shapes == [
        [
            ("image", "user", 0, False),
            ("text", "user", "What is it?", False),
            ("text", "assistant", "A cat.", True),
            ("text", "user", "Sure?", False),
            ("text", "assistant", "Yes.", True),
        ],
        [
            ("text", "user", "First", False),
            ("image", "user", 0, False),
            ("text", "user", "then", False),
            ("image", "user", 1, False),
            ("text", "user", "?", False),
            ("text", "assistant", "Two.", True),
        ],
        [("image", "user", 0, False), ("text", "user", "No mark.", False), ("text", "assistant", "Fine.", True)],
        [
            ("text", "system", "Be brief.", False),
            ("text", "user", "Hello", False),
            ("text", "assistant", "Hi.", True),
        ],
    ]
    assert [len(s.media) for s in samples] == [1, 2, 1, 0]
    assert samples[0].family == samples[1].family  # they share their first image
    assert [s.metadata["id"] for s in samples] == ["1", "2", "3", "4"]
    reasons = [
        "2 <image> marks for 1 images",
        "missing.png: no such file",
        "cut.png: corrupt or truncated PNG",
        "no turn of the assistant",
        "conversations[1].value: is empty",
        "conversations[0].from: expected one of",
        "conversations[0].from: expected one of",
        "expected a list of turns",
        "expected an object, found str",
        "image: expected text, found int",
        "expected a path inside",
        "3 images, more than the limit of 2",
    ]
    assert list(bad) == [f"conversations.json[{i}]" for i in range(4, 16)]
    for found, expected in zip(bad.values(), reasons, strict=True):
        assert expected in found


def test_llava_jsonl_with_an_image_root(pictures: Path) -> None:
    line = json.dumps({"id": "1", "image": "c.png", "conversations": llava_turns("<image>", "A dog.")})
    (pictures / "x.jsonl").write_text(f"{line}\n{line[:-5]}\n")

    samples, bad = read(pictures, "llava", "x.jsonl", image_root="sub")

    assert [s.media for s in samples] == [[(pictures / "sub/c.png").read_bytes()]]
    assert list(bad) == ["x.jsonl:2"]


@pytest.mark.parametrize("content", ["[{,", '{"id": 1}', "", "\x00\x01", '"\\ud800'])
def test_a_llava_file_that_cannot_be_parsed_is_quarantined_whole(pictures: Path, content: str) -> None:
    (pictures / "conversations.json").write_text(content)

    samples, bad = read(pictures, "llava")

    assert samples == []
    assert list(bad) == ["conversations.json"]


TEXT = "\n\nFirst\nparagraph.\n\n \t\nSecond.\r\n\r\nThird.\n"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("paragraph", {"t.txt:3": "First\nparagraph.", "t.txt:7": "Second.", "t.txt:9": "Third."}),
        ("line", {"t.txt:3": "First", "t.txt:4": "paragraph.", "t.txt:7": "Second.", "t.txt:9": "Third."}),
        ("file", {"t.txt": "First\nparagraph.\n\n \t\nSecond.\n\nThird."}),
    ],
)
def test_text_units(tmp_path: Path, unit: str, expected: dict[str, str]) -> None:
    (tmp_path / "t.txt").write_bytes(TEXT.encode())

    samples, bad = read(tmp_path, "text", unit=unit, source="s")

    assert bad == {}
    assert {s.id: s.segments[0].text for s in samples} == {f"s/{k}": v for k, v in expected.items()}


def test_text_folder_keeps_the_good_and_names_the_bad(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("one\n\ntwo")
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "deep/b.jsonl").write_text('{"text": "three"}\n{"text": ""}\n{"t": 1}\nnope\n')
    (folder / "long.txt").write_text("x" * 101)
    (folder / "huge.txt").write_text("y\n\n" * 200)
    (folder / "other.bin").write_text("ignored")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(folder / "pipe.txt")

    samples, bad = read(folder, "text", limits={"max_text_chars": 100, "max_file_bytes": 500})

    assert [s.segments[0].text for s in samples] == ["one", "two", "three"]
    lines = {f"deep/b.jsonl:{line}" for line in (2, 3, 4)}
    assert set(bad) == {"latin.txt:1", "long.txt:1", "huge.txt", "link.txt", "pipe.txt", *lines}
    assert "not valid Unicode" in bad["latin.txt:1"]
    assert "symbolic links" in bad["link.txt"]


def test_equal_texts_are_one_family(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("same\n\nother\n\nsame")

    samples, _ = read(tmp_path, "text")

    assert [s.family == samples[0].family for s in samples] == [True, False, True]
    assert len({s.id for s in samples}) == 3


def test_files_are_read_inside_the_folder_alone(pictures: Path) -> None:
    for path in (
        "../secret.png",
        "sub/../../secret.png",
        "/etc/passwd",
        "a\\b",
        "a\0b",
        "",
        ".",
        "link.png",
        "out/secret.png",
    ):
        with pytest.raises(InvalidArgumentError):
            read_inside(pictures, path, max_bytes=1 << 20)
    assert read_inside(pictures, "./sub//c.png", max_bytes=1 << 20) == png(2)
    with pytest.raises(InvalidArgumentError, match="more than the limit"):
        read_inside(pictures, "a.png", max_bytes=10)
    os.mkfifo(pictures / "pipe")
    with pytest.raises(InvalidArgumentError, match="not a regular file"), open_inside(pictures, "pipe"):
        pass
    listed = [item for item in list_files(pictures, (".png",)) if not isinstance(item, Quarantined)]
    assert listed == ["a.png", "b.png", "big.png", "cut.png", "note.png", "sub/c.png"]


def test_no_descriptor_is_left_open(pictures: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in ("a.png", "link.png", "out/secret.png", "none.png", "sub"):
        for _ in range(5):
            try:
                read_inside(pictures, path, max_bytes=1 << 20)
            except (InvalidArgumentError, NotFoundError):
                continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_split_shares_are_met_and_stable() -> None:
    shares = SplitShares(validation=0.1, test=0.2)
    dealt = [shares.split_of(f"family{i}") for i in range(5000)]

    assert abs(dealt.count("test") / 5000 - 0.2) < 0.02
    assert abs(dealt.count("validation") / 5000 - 0.1) < 0.02
    assert dealt[:10] == [SplitShares(validation=0.1, test=0.2).split_of(f"family{i}") for i in range(10)]
    assert dealt != [SplitShares(validation=0.1, test=0.2, seed=1).split_of(f"family{i}") for i in range(5000)]


def test_the_scenes_reader_yields_scenes() -> None:
    settings = {"num_scenes": 2, "num_pairs": 1, "num_texts": 1, "image_size": 32}

    samples = list(registry.build("reader", {"name": "scenes", **settings}, None))

    assert [s.source for s in samples] == ["scenes/captioned"] * 2 + ["scenes/interleaved", "scenes/text"]
    with pytest.raises(InvalidArgumentError, match="leave it empty"):
        registry.build("reader", {"name": "scenes"}, Location(Path("/")))
