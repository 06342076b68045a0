"""Reads a corpus of hostile files beside good ones: ``python -m tools.chaos.hostile_corpus``.

Every file below is read by its reader, all in one process. What must hold: each
hostile file is quarantined with a reason, every good row is there, nothing crashes, and the process's peak memory stays
below ``--memory-mib``. Prints a row a reader and one line of JSON; the exit code is 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rebus import registry
from rebus.data.readers import Location, Quarantined
from rebus.data.sample import Sample, Segment
from tools.chaos.hostile_media import write_sounds, write_videos
from tools.chaos.hostile_tables import spoil, write_arrow, write_parquet
from tools.chaos.pictures import PICTURES

MEMORY_MIB = 400
MEMBERS = 10_000
_GOOD = 3
# Bytes of zeros in a bomb, and how deep what is nested goes.
_BOMB = 128 << 20
_DEEP = 100_000
# What a file and a column may hold here; the readers' own limits are larger, and so would the bombs have to be.
_LIMIT = 64 << 20
_TABLE_LIMITS = {"max_chunk_bytes": _LIMIT, "max_sample_bytes": 16 << 20}
# Length of a text without an end.
_ENDLESS = 256 << 20


def picture(format: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.new(mode, (16, 12), 7 if len(mode) < 3 else None).save(buffer, format, **options)
    return buffer.getvalue()


def odd_but_good() -> dict[str, bytes]:
    """Pictures that must be read: animated, CMYK, 16-bit, turned by EXIF, and one whose name lies."""
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "green", "blue")]
    turned = Image.Exif()
    turned[0x0112] = 6
    found = {
        "cmyk.jpg": picture("JPEG", "CMYK"),
        "deep.png": picture("PNG", "I;16"),
        "turned.jpg": picture("JPEG", exif=turned.tobytes()),
        "really-a-png.jpg": picture(),
        # What is compressed behind the pixels is never unpacked.
        "bomb-behind.png": _png_claiming(100, 100, bytes(1 << 26)),
    }
    for name, format in (("moving.webp", "WEBP"), ("moving.png", "PNG")):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
        found[name] = buffer.getvalue()
    return found


def bad_pictures() -> dict[str, bytes]:
    """Pictures that must be refused."""
    gif = io.BytesIO()
    Image.new("P", (8, 8)).save(gif, "GIF", save_all=True, append_images=[Image.new("P", (8, 8), 3)])
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 24))
    return {
        "bomb.png": _png_claiming(60_000, 60_000, bytes(1 << 24)),
        "bomb.webp": b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\xff\xff\xff\xff\xff",
        "moving.gif": gif.getvalue(),
        "empty.png": b"",
        "cut.jpg": picture("JPEG")[:200],
        "jpeg-inside.png": picture()[:8] + picture("JPEG")[8:],
        "archive.png": zipped.getvalue(),
        "zeros.png": bytes(4096),
        **{f"odd-{i}.png": data for i, data in enumerate(PICTURES) if not data.startswith((b"\x89PNG", b"\xff\xd8"))
           and data[8:15] != b"WEBPVP8"},
    }  # fmt: skip


def _png_claiming(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_images(folder: Path) -> tuple[int, int]:
    """An image folder; how many rows are good and how many bad. Every writer below answers the same."""
    good, bad = odd_but_good(), bad_pictures()
    for name, data in {**good, **bad}.items():
        (folder / name).write_bytes(data)
    (folder / "link.png").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.png")
    names = ["../x.png", "/etc/passwd", "link.png", "pipe.png", ".", "none.png", "nul\0.png", "x" * 5000]
    rows = [*good, *bad, *names]
    lines = [json.dumps({"image": name, "caption": "c"}) for name in rows]
    lines += [
        '{"image": ' + "[" * _DEEP,
        '{"image": "' + "x" * (5 << 20),
        "\0\0",
        '{"image": "cmyk.jpg", "caption": "\\ud800"}',
    ]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return len(good), len(lines) - len(good)


def write_shards(folder: Path) -> tuple[int, int]:
    """Tar shards, each with good samples before the damage."""
    good = bad = 0
    for name, (data, bad_here) in _shards().items():
        (folder / name).write_bytes(data)
        bad += bad_here
        if name.startswith(("good", "broken")):
            good += _GOOD - name.startswith("broken")
    return good, bad


def _shards() -> dict[str, tuple[bytes, int]]:
    """Shard -> its bytes and the number of things that are wrong with it. ``good`` ones begin with good samples.

    So do ``broken`` ones, but the sample right before the break may lack a member, and goes too.
    """
    links = [
        ("a.jpg", tarfile.SYMTYPE),
        ("b.jpg", tarfile.LNKTYPE),
        ("c.jpg", tarfile.CHRTYPE),
        ("d.jpg", tarfile.FIFOTYPE),
    ]
    special = [(name, kind, b"") for name, kind in links]
    named = [
        (name, tarfile.REGTYPE, b"x")
        for name in ("../up.txt", "/etc/cron.txt", "a/../../b.txt", "c\\d.txt", "e\nf.txt")
    ]
    many = [(f"{i}.npy", tarfile.REGTYPE, b"") for i in range(MEMBERS)]
    one_key = [(f"k.{i}.png", tarfile.REGTYPE, picture()) for i in range(300)]
    body = _tar([], good=True)[: _GOOD * 4 * tarfile.BLOCKSIZE]  # without the end mark
    return {
        "good-links.tar": (_tar(special, good=True), len(special)),
        "good-names.tar": (_tar(named, good=True), len(named)),
        "good-many.tar": (_tar(many, good=True), 0),
        "good-one-key.tar": (_tar(one_key, good=True), 1),
        "broken-long-name.tar": (body + _long_name_bomb() + bytes(1024), 1),
        "good-sparse.tar": (_tar([("s.txt", tarfile.GNUTYPE_SPARSE, b"")], good=True), 1),
        "broken-cut.tar": (body + _tar([("z.txt", tarfile.REGTYPE, bytes(5000))])[:2000], 1),
        "broken-header.tar": (body + b"\xff" * 512 + bytes(1024), 1),
        "lying.tar": (_lying_size(), 1),
        "empty.tar": (b"", 1),
        "zeros.tar": (bytes(10240), 0),
        "text.tar": (b"not a tar " * 100, 1),
        "not.tar.gz": (b"not gzip", 1),
        "bomb.tar.gz": (_gzip_bomb(), 1),
    }  # fmt: skip


def _tar(members: list[tuple[str, bytes, bytes]], *, good: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        samples = [
            (f"good{i}.{e}", tarfile.REGTYPE, d) for i in range(_GOOD) for e, d in (("png", picture()), ("txt", b"x"))
        ]
        for name, kind, data in [*(samples if good else []), *members]:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "/etc/passwd" if kind != tarfile.REGTYPE else ""
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _long_name_bomb() -> bytes:
    """A header that announces a name of many megabytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, _BOMB
    return info.tobuf(tarfile.GNU_FORMAT)


def _lying_size() -> bytes:
    info = tarfile.TarInfo("a.png")
    info.size = _BOMB
    return info.tobuf() + picture().ljust(1024, b"\0") + bytes(1024)


def _gzip_bomb() -> bytes:
    """Many megabytes of zeros after a header that says they are one text member."""
    info = tarfile.TarInfo("a.txt")
    info.size = _BOMB
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as stream:
        stream.write(info.tobuf())
        for _ in range(_BOMB >> 20):
            stream.write(bytes(1 << 20))
        stream.write(bytes(1024))
    return buffer.getvalue()


def write_tables(folder: Path) -> tuple[int, int]:
    """Parquet and Arrow files of captioned images."""
    table = pa.table({"image": [{"bytes": picture(), "path": ""}] * _GOOD, "text": ["x"] * _GOOD})
    for name in ("good", "good-file"):
        write_parquet(folder / f"{name}.parquet", table)
        write_arrow(folder / f"{name}.arrow", table, compression="zstd" if name == "good" else None)
    write_parquet(folder / "types.parquet", pa.table({"text": [1], "image": ["x"]}))
    write_parquet(folder / "schema.parquet", pa.table({"other": [1]}))
    return 4 * _GOOD, 2 + sum(spoil(folder, table, "text").values())


def write_exported(folder: Path) -> tuple[int, int]:
    """Files as the parquet exporter writes them."""
    segments = [Segment(type="image", media=0), Segment(text="x")]
    samples = [Sample(id=f"s{at}", segments=segments, media=[picture()]) for at in range(_GOOD)]
    registry.build("exporter", {"name": "parquet"}).write(samples, folder)
    table = pq.read_table(folder / "part-00000.parquet")
    odd = {
        "media": [[bad_pictures()["bomb.png"]], [b""], []],
        "segments": [[], None, table["segments"][0].as_py() * 3000],
        "metadata": ["[" * _DEEP, "7", "{"],
        "id": ["", None, "\0" * 10_000_000],
    }
    for name, cells in odd.items():
        at = table.schema.get_field_index(name)
        changed = table.set_column(at, name, pa.array(cells, table.schema.field(name).type))
        write_parquet(folder / f"odd-{name}.parquet", changed)
    bad = spoil(folder, table, "metadata")
    return _GOOD, 3 * len(odd) + sum(count for name, count in bad.items() if name.endswith(".parquet"))


def write_documents(folder: Path) -> tuple[int, int]:
    """MMC4's documents."""
    shown = {"image_base64": base64.b64encode(picture()).decode(), "matched_text_index": 1, "matched_sim": 0.3}
    document = {"text_list": ["a", "b"], "image_info": [shown], "url": "https://a.org"}
    # Nobody reads the matrix: what an image belongs to stands beside the image.
    good = [document, {**document, "similarity_matrix": [[0.1] * 9] * 7}, {"text_list": ["a"]}]
    wrong = [{"matched_text_index": at} for at in (2, -1, 10**30, True, None, 0.5, "1")]
    wrong += [{"matched_sim": "high"}, {"matched_sim": None}, {"image_base64": 7}, {"image_base64": "A" * 100}]
    wrong += [{"image_base64": base64.b64encode(data).decode()} for data in (b"", bad_pictures()["bomb.png"])]
    absent = {"matched_text_index": 0}
    wrong += [{"image_base64": "", **absent, "image_name": name} for name in ("../x.png", "/etc/passwd", "none.png", 7)]
    wrong += [
        {"image_base64": "", **absent, "raw_url": "http://169.254.169.254/latest/meta-data"},
        {"image_base64": ""},
    ]
    bad: list[Any] = [{**document, "image_info": [{**shown, **change}]} for change in wrong]
    bad += [{**document, "image_info": images} for images in ([shown] * 300, [7], {"a": 1}, "x")]
    bad += [
        {**document, "text_list": texts}
        for texts in (["x"] * 5000, [], ["a", 7], {}, None, ["\0", "b"], ["x" * 200_000, "b"])
    ]
    bad += [{**document, "url": "\ud800"}]
    lines = [json.dumps(entry) for entry in [*good, *bad]]
    raw = ["[" * _DEEP, '{"text_list": ' + "[" * _DEEP, "[]", "NaN", '{"text_list": ["' + "x" * (5 << 20) + '"]}', "\0"]
    raw += ['{"text_list": [' + "[]," * 1_000_000 + "7]}"]
    data = "\n".join([*lines, *raw]).encode() + b'\n{"text_list": ["\xff\xfe"]}\n' + json.dumps(document).encode()
    (folder / "documents.jsonl").write_bytes(data)
    return len(good) + 1, len(bad) + len(raw) + 1


def write_pairs(folder: Path) -> tuple[int, int]:
    """OBELICS' pairs of lists."""
    table = pa.table({"texts": [["a", None, "b"]] * _GOOD, "images": [[None, picture(), None]] * _GOOD})
    write_parquet(folder / "good.parquet", table)
    wrong: list[tuple[Any, Any]] = [
        (["a"], [None, None]), (None, None), (["a"], None), (["a"], [picture()]), ([None], [picture()]),
        (["a", None], [None, b""]), (["a", None], [None, bad_pictures()["bomb.png"]]), (["\0"], [None]),
        (["x"] * 5000, [None] * 5000), (["a"] + [None] * 300, [None] + [picture()] * 300), (["x" * 200_000], [None]),
    ]  # fmt: skip
    schema = table.schema
    write_parquet(
        folder / "wrong.parquet",
        pa.table({"texts": [texts for texts, _ in wrong], "images": [images for _, images in wrong]}, schema=schema),
    )
    names = ["../x.png", "/etc/passwd", "none.png", "http://169.254.169.254/latest/meta-data", "x" * 5000]
    write_parquet(
        folder / "names.parquet", pa.table({"texts": [["a", None]] * 5, "images": [[None, n] for n in names]})
    )
    write_parquet(
        folder / "types.parquet", pa.table({"texts": [[1]], "images": pa.array([[None]], pa.list_(pa.string()))})
    )
    return _GOOD, len(wrong) + len(names) + 1 + sum(spoil(folder, table, "texts").values())


def write_prose(folder: Path) -> tuple[int, int]:
    """Plain text and JSONL."""
    (folder / "good.txt").write_text("\n\n".join(["a text"] * _GOOD))
    with (folder / "endless.txt").open("wb") as file:
        file.truncate(_ENDLESS)  # one line of zeros that takes no room on the disk
    files = {
        "latin.txt": "\xe9t\xe9".encode("latin-1"),
        "wide.txt": "in UTF-16".encode("utf-16"),
        "zeros.txt": bytes(4096),
        "long.txt": b"a line\n" * 1_000_000,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "link.txt").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.txt")
    lines = [b'{"text": "x"}'] * _GOOD + [b""] * 1000
    bad = [
        b"[" * _DEEP, b'{"text": ' + b"[" * _DEEP, b'{"a":' * _DEEP, b'{"text": 7}', b"{}", b"7", b"NaN",
        b'{"text": "\\ud800"}', b'{"text": "\\u0000"}', b'{"text": "\xff"}', b"\0" * 100, b'{"text": "',
        b'{"text": "' + b"x" * (5 << 20) + b'"}', b'{"text": "' + b"x" * 200_000 + b'"}', b'{"text": ' + b"9" * 10_000,
    ]  # fmt: skip
    (folder / "lines.jsonl").write_bytes(b"\n".join([*lines, *bad, lines[0]]))
    return 2 * _GOOD + 1, len(files) + 3 + len(bad)


def write_texts(folder: Path) -> tuple[int, int]:
    """JSON arrays for the llava reader: good entries, then one that nests deeply."""
    entry = json.dumps({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})
    deep = '{"a":' * _DEEP
    (folder / "conversations.json").write_text("[" + f"{entry}," * _GOOD + f"7,{deep}")
    return _GOOD, 2


def write_pages(folder: Path) -> tuple[int, int]:
    """Web pages."""
    (folder / "a.png").write_bytes(picture())
    bad = {
        "nested": "<div>" * 3_000_000, "formatting": "".join(f"<b a={i}>" for i in range(100_000)) + "<p>x" * 100_000,
        "pictures": "x<img src=a.png>" * 100_000, "outside": "x<img src=../../etc/passwd>",
        "metadata-service": "x<img src=http://169.254.169.254/latest/meta-data>", "large": "x" * (17 << 20),
        "empty": "",
    }  # fmt: skip
    for name, page in bad.items():
        (folder / f"{name}.html").write_text(page)
    for i in range(_GOOD):
        (folder / f"good{i}.html").write_text("<p>x<img src=a.png>\0<table><td>y")
    return _GOOD, len(bad)


def write_questions(folder: Path) -> tuple[int, int]:
    """A TSV of questions."""
    image = base64.b64encode(picture()).decode()
    cells = ["A" * 100, base64.b64encode(bad_pictures()["bomb.png"]).decode(), "77", "[" * 100_000, '["' + "A" * 200]
    rows = [f"{i}\tq\t{image}" for i in range(_GOOD)] + [f"{90 + i}\tq\t{cell}" for i, cell in enumerate(cells)]
    (folder / "t.tsv").write_text("\n".join(["index\tquestion\timage", *rows, '99\t"never closed', "100\tq\t" + image]))
    return _GOOD, len(cells) + 1


# Reader -> what writes its corpus, and its settings.
CORPORA: dict[str, tuple[Any, dict[str, Any]]] = {
    "image-folder": (write_images, {"captions": "captions.jsonl"}),
    "audio": (partial(write_sounds, good=_GOOD), {"limits": {"audio": {"max_seconds": 60}}}),
    "video": (partial(write_videos, good=_GOOD), {"captions": "captions.jsonl"}),
    "webdataset": (write_shards, {"limits": {"max_file_bytes": _LIMIT}}),
    "huggingface": (write_tables, {"caption_column": "text", "limits": _TABLE_LIMITS}),
    "parquet": (write_exported, {"limits": _TABLE_LIMITS}),
    "obelics": (write_pairs, {"limits": _TABLE_LIMITS}),
    "mmc4": (write_documents, {}),
    "llava": (write_texts, {}),
    "html": (write_pages, {}),
    "text": (write_prose, {}),
    "vlmevalkit": (write_questions, {}),
}
# Readers that make their samples and read no files.
MAKERS = frozenset(("emoji", "scenes"))


def read(folder: Path, reader: str) -> Iterator[Any]:
    """What a reader makes of its corpus."""
    yield from registry.build("reader", {"name": reader, **CORPORA[reader][1]}, Location(folder / reader))


def measure(folder: Path) -> list[dict[str, Any]]:
    """Reads every corpus in this process: good samples, reasons, and the peak of memory so far (MiB)."""
    found = []
    for reader in CORPORA:
        began = time.monotonic()
        items = [(i.location, i.reason) if isinstance(i, Quarantined) else None for i in read(folder, reader)]
        reasons = [item for item in items if item is not None]
        found.append({"reader": reader, "good": items.count(None), "bad": reasons, "peak_mib": _peak_mib()})
        found[-1]["seconds"] = round(time.monotonic() - began, 1)
    return found


def _peak_mib() -> int:
    """The most memory that this process has held; unlike ``ru_maxrss``, not what its parent held before it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) >> 10


def run(folder: Path, memory_mib: int = MEMORY_MIB) -> tuple[list[dict[str, Any]], list[str]]:
    """Writes the corpus, reads it in a new process, and compares; the rows of the table and what did not hold."""
    expected: dict[str, tuple[int, int]] = {}
    for reader, (write, _) in CORPORA.items():
        (folder / reader).mkdir()
        expected[reader] = write(folder / reader)
    command = [sys.executable, "-m", "tools.chaos.hostile_corpus", "--read", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [], [f"the reading process ended with {done.returncode}: {done.stderr[-2000:]}"]
    rows = json.loads(done.stdout)
    problems = []
    for row in rows:
        good, bad = expected[row["reader"]]
        if row["good"] != good:
            problems.append(f"{row['reader']}: {row['good']} good samples, expected {good}")
        if len(row["bad"]) < bad or any(not reason.strip() for _, reason in row["bad"]):
            problems.append(f"{row['reader']}: {len(row['bad'])} reasons, expected {bad}")
        if row["peak_mib"] > memory_mib:
            problems.append(f"{row['reader']}: {row['peak_mib']} MiB, more than {memory_mib}")
    return rows, problems


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-mib", type=int, default=MEMORY_MIB, help="what the reading process may hold at most")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        json.dump(measure(options.read), sys.stdout)
        return 0
    with tempfile.TemporaryDirectory(prefix="rebus-hostile-") as folder:
        rows, problems = run(Path(folder), options.memory_mib)
    for row in rows:
        told = f"{row['good']:4} good {len(row['bad']):4} quarantined"
        print(f"{row['reader']:14} {told}  peak {row['peak_mib']} MiB  {row['seconds']} s")
    print(*problems, sep="\n", end="\n" if problems else "")
    good, bad = sum(row["good"] for row in rows), sum(len(row["bad"]) for row in rows)
    print(json.dumps({"good": good, "quarantined": bad, "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
