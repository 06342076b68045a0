"""Readers of public formats: the good rows of a realistic file come whole, the bad ones are named beside them."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rebus.data.readers import Location
from rebus.data.readers.base import ReaderLimits
from rebus.data.readers.files import json_array
from rebus.data.sample import Sample
from rebus.errors import InvalidArgumentError, NotFoundError
from rebus.registry import build
from tests.libs.data.reading import png, read


def shape(sample: Sample) -> list[tuple[str, str | int]]:
    return [(s.role, s.text if s.type == "text" else s.media) for s in sample.segments]


def jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(seed))).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_webdataset_groups_members_by_key(tmp_path: Path) -> None:
    members = [
        ("./a/01.jpg", jpeg(1)), ("./a/01.txt", b"one\n"), ("./a/01.json", b'{"k": 1}'), ("./a/01.npy", b"\x93NUMPY"),
        ("a/02.0.png", png(2)), ("a/02.1.png", png(3)), ("a/02.TXT", "zwei é".encode()),
        ("b/01.txt", b"text alone"),
        ("c.pickle", b"\x80\x04K."), ("c.pyd", b"\x80\x04K."),
        ("d.png", png(4)),
        ("e.png", png(5)[:50]), ("e.txt", b"broken"),
        ("f.png", png(6)), ("f.txt", b"\xff\xfe"),
        ("g.txt", b"x"), ("g.txt", b"y"),
        ("h.png", png(7)), ("h.txt", b"last"),
    ]  # fmt: skip
    (tmp_path / "s-000.tar").write_bytes(tar(members))
    (tmp_path / "s-001.tar").write_bytes(tar([]))

    samples, bad = read(tmp_path, "webdataset", source="w", prompt="What?")

    assert {s.id: shape(s) for s in samples} == {
        "w/s-000.tar/a/01": [("user", 0), ("user", "What?"), ("assistant", "one")],
        "w/s-000.tar/a/02": [("user", 0), ("user", 1), ("user", "What?"), ("assistant", "zwei é")],
        "w/s-000.tar/b/01": [("user", "What?"), ("assistant", "text alone")],
        "w/s-000.tar/h": [("user", 0), ("user", "What?"), ("assistant", "last")],
    }
    assert (samples[0].media, samples[0].metadata) == ([jpeg(1)], {"k": 1})
    assert samples[1].media == [png(2), png(3)]
    assert {key.removeprefix("s-000.tar/"): reason for key, reason in bad.items()} == {
        "d": "txt: is missing",
        "e": bad["s-000.tar/e"],
        "f": "txt: is not valid Unicode",
        "g": "txt: there are two of it",
    }
    assert "corrupt or truncated PNG" in bad["s-000.tar/e"]


def test_webdataset_captions_from_json_classes_and_gzip(tmp_path: Path) -> None:
    import gzip

    shard = tar([("1.jpg", jpeg()), ("1.cls", b"7"), ("1.json", b'{"text": "told"}')])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(shard))

    by_class, _ = read(tmp_path, "webdataset", "x.tar.gz", caption_ending="cls")
    by_field, _ = read(tmp_path, "webdataset", caption_field="text")

    assert [shape(s)[1] for s in (*by_class, *by_field)] == [("assistant", "7"), ("assistant", "told")]
    for name, error in (("none.tar", NotFoundError), ("x.zip", InvalidArgumentError)):
        with pytest.raises(error):
            build("reader", {"name": "webdataset", "files": [name]}, Location(tmp_path))


def test_mmc4_puts_images_at_their_sentences(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for seed in range(3):
        (tmp_path / f"images/{seed}.png").write_bytes(png(seed))

    def image(name: str, index: Any, sim: float = 0.5, **more: Any) -> dict[str, Any]:
        return {"image_name": name, "raw_url": None, "matched_text_index": index, "matched_sim": sim, **more}

    encoded = base64.b64encode(png(9)).decode()
    rows: list[Any] = [
        {"text_list": ["A.", "B.", " "], "image_info": [image("1.png", 1), image("0.png", 0), image("2.png", 1, 0.1)],
         "url": "https://example.org/a", "similarity_matrix": [[0.1]]},
        {"text_list": ["C."], "image_info": [image("x.png", 0, image_base64=encoded)]},
        {"text_list": ["D."], "image_info": None},
        {"text_list": ["E."], "image_info": [image("1.png", 1)]},
        {"text_list": ["F."], "image_info": [image("none.png", 0)]},
        {"text_list": ["G."], "image_info": [image("../../x.png", 0)]},
        {"text_list": "H.", "image_info": []},
        {"text_list": ["I."], "image_info": [image("1.png", True)]},
        {"text_list": ["J."], "image_info": [{"image_name": None, "matched_text_index": 0,
                                              "raw_url": "https://example.org/i.png"}]},
        {"text_list": [], "image_info": []},
    ]  # fmt: skip
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    samples, bad = read(tmp_path, "mmc4", image_root="images", source="m", min_similarity=0.2)

    assert [[value for _, value in shape(s)] for s in samples] == [[0, "A.", 1, "B."], [0, "C."], ["D."]]
    assert [s.media for s in samples] == [[png(0), png(1)], [png(9)], []]
    assert samples[0].metadata == {"url": "https://example.org/a"}
    reasons = ["names none of 1 sentences", "none.png: no such file", "inside the source's folder", "list of texts",
               "True names none", "not a host that may be fetched from", "holds no text"]  # fmt: skip
    assert list(bad) == [f"docs.jsonl:{line}" for line in range(4, 11)]
    for reason, expected in zip(bad.values(), reasons, strict=True):
        assert expected in reason

    dropped, bad = read(tmp_path, "mmc4", image_root="images", bad_images="drop", image_position="after")
    assert [value for _, value in shape(dropped[0])] == ["A.", 0, "B.", 1, 2]
    assert {"docs.jsonl:5", "docs.jsonl:6", "docs.jsonl:9"}.isdisjoint(bad)
    missing = next(s for s in dropped if shape(s)[0][1] == "F.")
    assert missing.metadata["dropped_images"][0]["name"] == "none.png"


def test_obelics_keeps_the_order_of_texts_and_images(tmp_path: Path) -> None:
    held = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "p.png").write_bytes(png(2))
    table = pa.table(
        {
            "texts": pa.array(
                [["first", None, "second", None], [None, "x"], ["a"], ["b", None], ["c"] * 2], pa.list_(pa.string())
            ),
            "images": pa.array(
                [
                    [None, {"bytes": png(1)}, None, {"path": "p.png"}],
                    [{"bytes": b"no"}, None],
                    [{"bytes": png()}],
                    [None],
                    [None] * 2,
                ],
                pa.list_(held),
            ),
            "general_metadata": ['{"url": "u"}'] * 5,
        }
    )
    pq.write_table(table, tmp_path / "o.parquet", row_group_size=2)

    samples, bad = read(tmp_path, "obelics", source="o", metadata_columns=["general_metadata"])

    assert [[value for _, value in shape(s)] for s in samples] == [["first", 0, "second", 1], ["c", "c"]]
    assert samples[0].media == [png(1), png(2)]
    assert samples[0].metadata == {"general_metadata": '{"url": "u"}'}
    assert list(bad) == ["o.parquet[1]", "o.parquet[2]", "o.parquet[3]"]
    assert "not a PNG" in bad["o.parquet[1]"]
    assert "a text and an image at one place" in bad["o.parquet[2]"]
    assert "as long as" in bad["o.parquet[3]"]


@pytest.mark.parametrize("kind", ["parquet", "stream.arrow", "file.arrow"])
def test_huggingface_columns(tmp_path: Path, kind: str) -> None:
    held = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": png(i), "path": None} for i in range(2)] + [{"bytes": b"", "path": "x"}, None]
    table = pa.table(
        {
            "image": pa.array(images, held),
            "q": ["how many?", "which?", "x", "no image"],
            "a": ["two", None, "x", "fine"],
            "n": [1, 2, 3, 4],
            "when": pa.array([0] * 4, pa.timestamp("s")),
        }
    )
    if kind == "parquet":
        path = tmp_path / "test-00000-of-00001.parquet"
        pq.write_table(table, path)
    else:
        path = tmp_path / f"test-00000-of-00001.{kind}"
        make = pa.ipc.new_file if kind.startswith("file") else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table)

    samples, bad = read(
        tmp_path, "huggingface", caption_column="a", prompt_column="q", metadata_columns=["n", "when"], id_column="n",
        splits_from_names=True, source="h",
    )  # fmt: skip

    assert [(s.id, s.split, shape(s)) for s in samples] == [
        ("h/1", "test", [("user", 0), ("user", "how many?"), ("assistant", "two")]),
        ("h/4", "test", [("user", "no image"), ("assistant", "fine")]),
    ]
    assert samples[0].metadata == {"n": 1, "when": "1970-01-01 00:00:00"}
    assert list(bad) == [f"{path.name}[1]", f"{path.name}[2]"]
    assert "a: is missing" in bad[f"{path.name}[1]"]
    _, bad = read(tmp_path, "huggingface", caption_column="answer")
    assert f"{path.name} has no column 'answer'; its columns: image, q, a, n, when" in bad[path.name]


def test_huggingface_conversations(tmp_path: Path) -> None:
    pictures = [[png(1)], [png(1), png(2)], [], [png(1)]]
    turns: list[Any] = [
        [{"user": "What?", "assistant": "A cat."}, {"user": "Sure?", "assistant": "Yes."}],
        [{"role": "user", "content": "<image> or <image>?"}, {"role": "assistant", "content": "First."}],
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}],
        [{"user": "What?", "assistant": ""}],
    ]
    columns = {"images": pa.array(pictures, pa.list_(pa.binary())), "texts": turns}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    settings = {"image_columns": ["images"], "conversations_column": "texts"}

    samples, bad = read(tmp_path, "huggingface", **settings)

    assert [shape(s) for s in samples] == [
        [("user", 0), ("user", "What?"), ("assistant", "A cat."), ("user", "Sure?"), ("assistant", "Yes.")],
        [("user", 0), ("user", "or"), ("user", 1), ("user", "?"), ("assistant", "First.")],
        [("user", "Hi"), ("assistant", "Hello.")],
    ]
    assert "conversations[0].assistant: is empty" in bad["a.parquet[3]"]
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    chat = [[{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "So."}]}]]
    pq.write_table(
        pa.table({"images": pa.array([[png()]], pa.list_(pa.binary())), "texts": chat}), tmp_path / "a.parquet"
    )
    samples, _ = read(tmp_path, "huggingface", **settings)
    assert shape(samples[0]) == [("user", 0), ("user", "What?"), ("assistant", "So.")]
    with pytest.raises(InvalidArgumentError, match="one of caption_column and conversations_column"):
        build("reader", {"name": "huggingface"}, Location(tmp_path))


def test_vlmevalkit_questions_options_and_references(tmp_path: Path) -> None:
    first, second = (base64.b64encode(png(seed)).decode() for seed in (1, 2))
    header = ["index", "question", "hint", "A", "B", "answer", "category", "image"]
    rows = [
        ["0", "Which?", "", "cat", "dog", "A", "animals", first],
        ["1", "Why?", "Look.", "", "nan", "because", "animals", "0"],
        ["2", "Both?", "", "yes", "no", "B", "pairs", str([first, second])],
        ["3", "Again?", "", "", "", "", "pairs", "2"],
        ["4", "x", "", "", "", "", "", "77"],
        ["5", "x", "", "", "", "", "", "!" * 80],
        ["6", "", "", "", "", "", "", first],
        ["7", "x", "", "", "", "", "", "[" * 99],
        ["8", "Text only?", "", "", "", "yes", "", ""],
    ]
    (tmp_path / "b.tsv").write_text("\n".join("\t".join(row) for row in [header, *rows]))

    samples, bad = read(tmp_path, "vlmevalkit", source="v", instruction="Answer with the letter.")

    asked = [next(s.text for s in sample.segments if s.role == "user" and s.text) for sample in samples]
    assert asked == ["Which?\nA. cat\nB. dog\nAnswer with the letter.", "Hint: Look.\nWhy?",
                     "Both?\nA. yes\nB. no\nAnswer with the letter.", "Again?", "Text only?"]  # fmt: skip
    assert [s.media for s in samples] == [[png(1)], [png(1)], [png(1), png(2)], [png(1), png(2)], []]
    assert [s.segments[-1].text for s in samples if s.segments[-1].loss] == ["A", "because", "B", "yes"]
    assert samples[0].metadata == {
        "index": "0", "category": "animals", "answer": "A", "options": {"A": "cat", "B": "dog"},
    }  # fmt: skip
    assert samples[0].family == samples[1].family
    assert list(bad) == [f"b.tsv:{line}" for line in (6, 7, 8, 9)]
    assert "no earlier row" in bad["b.tsv:6"]
    assert "not base64" in bad["b.tsv:7"]
    assert "question: is empty" in bad["b.tsv:8"]
    assert "list of base64" in bad["b.tsv:9"]


def test_images_larger_than_a_line_may_be_are_read_from_a_tsv(tmp_path: Path) -> None:
    large = png(1, size=200)
    (tmp_path / "b.tsv").write_text(f"index\tquestion\timage\n0\tWhat?\t{base64.b64encode(large).decode()}\n")

    samples, bad = read(tmp_path, "vlmevalkit", limits={"max_line_bytes": 1000})

    assert (samples[0].media, bad) == ([large], {})


PAGE = """<!DOCTYPE html><html lang=en><head><title>A &amp; B</title><style>p{}</style><script>var x = "<p>no";</script>
</head><body><h1>Head</h1><p>One
  <b>bold</b><br>two</p><!-- no --><img src="a.png"><img src="../c%20c.png?x=1" alt=no>
<ul><li>l1<li>l2</ul><noscript>no</noscript><figure><img src="data:image/png;base64,{data}"><figcaption>cap</figcaption>
</figure><p>end <img src="/top.png"> after</body></html>"""


def test_html_keeps_texts_and_images_in_the_order_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for seed, name in enumerate(("sub/a.png", "c c.png", "top.png")):
        (tmp_path / name).write_bytes(png(seed))
    (tmp_path / "sub/page.html").write_text(PAGE.replace("{data}", base64.b64encode(png(7)).decode()))

    samples, bad = read(tmp_path, "html", source="h")

    assert bad == {}
    assert [value for _, value in shape(samples[0])] == [
        "Head\nOne bold\ntwo",
        0,
        1,
        "l1\nl2",
        2,
        "cap\nend",
        3,
        "after",
    ]
    assert samples[0].media == [png(0), png(1), png(7), png(2)]
    assert samples[0].metadata == {"file": "sub/page.html", "title": "A & B"}


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("<p>x<img src=../../secret.png>", "inside the source's folder"),
        ("<p>x<img src=file:///etc/passwd>", "images by file: are not read"),
        ("<p>x<img src=http://[>", "Invalid IPv6 URL"),
        ("<p>x<img src=//169.254.169.254/latest>", "not a host that may be fetched from"),
        ("<p>x<img src=none.png>", "none.png: no such file"),
        ("<p>x<img src=data:image/png;base64,AAAA>", "not a PNG"),
        ("<img src=a.png>", "holds no text"),
        ("<div>" * 600 + "x", "tags more than 512 deep"),
        ("<img src=a.png>x" * 4000, "segments: more than the limit of 4096"),
        ("<img src=a.png>x" * 257, "more than 256 images"),
        ("", "not HTML"),
        (b"\xff\xfe", "not utf-8: byte 0"),
    ],
)
def test_bad_pages_are_quarantined_beside_good_ones(tmp_path: Path, page: str | bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "bad.html").write_bytes(page if isinstance(page, bytes) else page.encode())
    (tmp_path / "good.htm").write_text("<p>fine</p>")

    samples, bad = read(tmp_path, "html", source="h")

    assert [s.id for s in samples] == ["h/good.htm"]
    assert list(bad) == ["bad.html"]
    assert reason in bad["bad.html"]


def test_html_finds_images_of_its_own_address_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "i/a.png").write_bytes(png(3))
    (tmp_path / "p.html").write_text("<p>x<img src='https://example.org/site/i/a.png'>")

    samples, bad = read(tmp_path, "html", base_url="https://example.org/site/")

    assert (samples[0].media, bad) == ([png(3)], {})


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_json_arrays_are_streamed_as_the_library_parses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("rebus.data.readers.files._ARRAY_CHUNK", chunk)
    entries = [
        {"a": "x" * n, "b": [n, -1.5e3, True, None, "\u00e9\U0001f600"], "c": {"d": ']},\\"'}} for n in range(40)
    ]
    text = json.dumps(entries, indent=1) + " \n"
    (tmp_path / "x.json").write_text(text, encoding="utf-8-sig")

    found = list(json_array(tmp_path, "x.json", ReaderLimits(max_line_bytes=2000)))

    assert found == [(f"x.json[{n}]", entry) for n, entry in enumerate(entries)]


@pytest.mark.parametrize(
    ("text", "good", "reason"),
    [
        ('[{"a": 1}, {"a": 2}, {"a" 3}, {"a": 4}]', 2, "Expecting ':' delimiter"),
        ('[{"a": 1}, {"a": 2}', 2, "ends within the array"),
        ('[{"a": 1} {"a": 2}]', 1, "expected ',' or ']'"),
        ('[{"a": 1}] x', 1, "text behind the end"),
        ('[{"a": NaN}]', 0, "NaN is not JSON"),
        ('[{"a": 1}, ' + '{"a":' * 100_000 + "]", 1, "recursion"),
        ('[{"a": 1}, {"a": "' + "x" * 5000, 1, "more than the limit of 2000 bytes"),
        ('[{"a": 1}, 12, "x", {"a": 2}]', 2, "expected an object, found int"),
        ('[{"a": 1},]', 1, "Expecting value"),
        ("[]", 0, ""),
    ],
)
def test_a_broken_json_array_keeps_what_stands_before(tmp_path: Path, text: str, good: int, reason: str) -> None:
    (tmp_path / "x.json").write_text(text)

    found = list(json_array(tmp_path, "x.json", ReaderLimits(max_line_bytes=2000)))

    assert sum(isinstance(item, tuple) for item in found) == good
    bad = [item for item in found if not isinstance(item, tuple)]
    assert reason in (bad[0].reason if bad else "")
