"""Benchmarks in the format of VLMEvalKit: a TSV of questions, options and answers with images in base64.

The format is that of VLMEvalKit (Duan et al., arXiv 2407.11691). An image cell holds base64, a list of them, or, if
it is short, the ``index`` of an earlier row whose images are meant. Options are the columns ``A``, ``B``, ...
"""

from __future__ import annotations

import ast
import string
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from rebus.data.readers.base import Location, Quarantined, SourceSettings, clean_text, each_row, made_sample
from rebus.data.readers.delimited import delimited_rows
from rebus.data.readers.files import check_inside, each_file, list_files
from rebus.data.readers.pictures import Pictures
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError, invalid
from rebus.registry import register

# A cell no longer than this names another row: no image is that small in base64.
_REFERENCE_CHARS = 64
_KEPT = ("index", "category", "l2-category", "split", "answer")


@dataclass(frozen=True, kw_only=True)
class VlmEvalKitConfig(SourceSettings):
    """Which tables, and how a question is put."""

    # TSV files inside the folder; empty: every .tsv below it. A URI that names a file reads that one.
    files: list[str] = field(default_factory=list)
    # Said after the options of a question that has some; nothing if empty.
    instruction: str = ""
    # What the segments are marked as.
    task: str = "question"


@register("reader", "vlmevalkit", config=VlmEvalKitConfig)
class VlmEvalKitReader:
    """VLMEvalKit's TSV files: questions with options, answers, and images in base64."""

    def __init__(self, config: VlmEvalKitConfig, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._files = [location.file] if location.file else config.files
        self._source = config.source or location.label
        for name in self._files:
            check_inside(self._root, name)

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        yield from each_file(self._files or list_files(self._root, (".tsv",)), self._read)

    def _read(self, name: str) -> Iterator[Sample | Quarantined]:
        limits = self._config.limits
        # Several images may stand in one row, each a third larger in base64.
        longest = limits.max_line_bytes + min(limits.max_sample_bytes, 2 * limits.image.max_bytes) * 4 // 3
        rows = delimited_rows(self._root, name, "\t", limits, ["index", "question"], max_row_bytes=longest)
        with tempfile.TemporaryFile(prefix="rebus-images-") as spill:
            table = _Table(self._config, self._source, Pictures(self._root, limits), spill)
            yield from each_row(rows, table.sample)


class _Table:
    """One table's rows as samples. Images wait on disk for later rows that refer to them."""

    def __init__(self, config: VlmEvalKitConfig, source: str, pictures: Pictures, spill: BinaryIO) -> None:
        self._config = config
        self._source = source
        self._pictures = pictures
        self._spill = spill
        # Index -> where its images lie in the file: (offset, bytes) of each.
        self._places: dict[str, list[tuple[int, int]]] = {}

    def sample(self, where: str, row: dict[str, Any]) -> Sample:
        """The sample of one row."""
        limits = self._config.limits
        index = clean_text(row.get("index"), "index", limits)
        media = self._images(index, row.get("image") or "")
        question = clean_text(self._question(row), "question", limits)
        segments = [Segment(type="image", media=i, task=self._config.task) for i in range(len(media))]
        segments.append(Segment(text=question, branch=1, task=self._config.task))
        answer = _cell(row, "answer")
        if answer:
            told = clean_text(answer, "answer", limits)
            segments.append(Segment(text=told, role="assistant", loss=True, branch=1, task=self._config.task))
        metadata: dict[str, Any] = {key: row[key] for key in _KEPT if _cell(row, key)}
        options = _options(row)
        return made_sample(
            self._config, self._source, where, segments, media, metadata={**metadata, "options": options}
        )

    def _question(self, row: dict[str, Any]) -> str:
        lines = [f"Hint: {_cell(row, 'hint')}"] if _cell(row, "hint") else []
        lines.append(clean_text(row.get("question"), "question", self._config.limits))
        options = _options(row)
        lines += [f"{letter}. {text}" for letter, text in options.items()]
        return "\n".join([*lines, self._config.instruction] if options and self._config.instruction else lines)

    def _images(self, index: str, cell: str) -> list[bytes]:
        cell = cell.strip()
        if not cell:
            return []
        if len(cell) <= _REFERENCE_CHARS and not cell.startswith("["):
            return self._earlier(cell)
        texts = _listed(cell) if cell.startswith("[") else [cell]
        if len(texts) > self._config.limits.max_media:
            raise invalid("image", f"more than the limit of {self._config.limits.max_media} images")
        images = [self._pictures.encoded(text) for text in texts]
        self._places[index] = [self._keep(data) for data in images]
        return images

    def _earlier(self, index: str) -> list[bytes]:
        places = self._places.get(index)
        if places is None:
            raise invalid("image", f"refers to row {index!r}, and no earlier row of that index has an image")
        return [self._kept(*place) for place in places]

    def _keep(self, data: bytes) -> tuple[int, int]:
        offset = self._spill.seek(0, 2)
        if offset + len(data) > self._config.limits.max_file_bytes:
            raise invalid(
                "image", f"the table's images are more than the limit of {self._config.limits.max_file_bytes}"
            )
        self._spill.write(data)
        return offset, len(data)

    def _kept(self, offset: int, size: int) -> bytes:
        self._spill.seek(offset)
        return self._spill.read(size)


def _cell(row: dict[str, Any], column: str) -> str:
    """A cell's text; pandas writes an empty one as nothing, and some tables as ``nan``."""
    text = (row.get(column) or "").strip()
    return "" if text.lower() == "nan" else text


def _options(row: dict[str, Any]) -> dict[str, str]:
    return {letter: _cell(row, letter) for letter in string.ascii_uppercase if _cell(row, letter)}


def _listed(cell: str) -> list[Any]:
    """A list of base64 texts as Python or JSON writes it."""
    try:
        texts = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise InvalidArgumentError("image: expected a list of base64 texts") from None
    if not isinstance(texts, list):
        raise invalid("image", f"expected a list of base64 texts, found {type(texts).__name__}")
    return texts
