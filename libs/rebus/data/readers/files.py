"""Reading files of a source folder without leaving it, wherever it lies.

On this machine, every component of a path is opened relative to the one before, without following symbolic links,
so neither ``..`` nor a link, nor a link put there between a check and a read, leads outside.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from rebus.data.readers.base import Quarantined, ReaderLimits, Root
from rebus.errors import InvalidArgumentError, NotFoundError, invalid

T = TypeVar("T")
MAX_FILE_BYTES = ReaderLimits().max_file_bytes
_ARRAY_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
# A parse that failed this close to the end of what was read (in characters), or in a string, may want more of it.
_NEAR_END = 16


@contextmanager
def open_inside(root: Root, relative: str, *, max_bytes: int = MAX_FILE_BYTES) -> Iterator[BinaryIO]:
    """Opens a regular file below ``root`` for reading.

    ``NotFoundError`` if there is none; ``InvalidArgumentError`` for an absolute path, ``..``, a symbolic link,
    anything that is not a regular file, or more than ``max_bytes``.
    """
    parts = _parts(relative)
    with ExitStack() as stack:
        if not isinstance(root, Path):
            yield stack.enter_context(root.open("/".join(parts), max_bytes=max_bytes))
            return
        folder = _opened(stack, root, None, os.O_DIRECTORY, relative)
        for part in parts[:-1]:
            folder = _opened(stack, part, folder, os.O_DIRECTORY | os.O_NOFOLLOW, relative)
        # Non-blocking, so that a FIFO cannot hang the reader before its kind is known.
        file = _opened(stack, parts[-1], folder, os.O_NOFOLLOW | os.O_NONBLOCK, relative)
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise invalid(relative, "not a regular file")
        if status.st_size > max_bytes:
            raise too_large(relative, max_bytes)
        yield stack.enter_context(os.fdopen(os.dup(file), "rb"))


def read_inside(root: Root, relative: str, *, max_bytes: int) -> bytes:
    """The bytes of a file below ``root``; errors as ``open_inside``."""
    if not isinstance(root, Path):
        return root.read("/".join(_parts(relative)), max_bytes=max_bytes)
    with open_inside(root, relative, max_bytes=max_bytes) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, max_bytes) + 1)  # a buffer as large as asked for is made at once
    if len(data) > max_bytes:  # it has grown since it was opened
        raise too_large(relative, max_bytes)
    return data


def check_inside(root: Root, relative: str) -> None:
    """Raises as ``open_inside``, as far as that shows without the file's bytes: a reader's constructor may call it."""
    if isinstance(root, Path):
        with open_inside(root, relative):
            return
    root.check("/".join(_parts(relative)))


def list_files(root: Root, suffixes: tuple[str, ...]) -> Iterator[str | Quarantined]:
    """Paths below ``root`` of files with one of ``suffixes``, sorted; links and special files are quarantined."""
    if not isinstance(root, Path):
        yield from root.files(suffixes)
        return
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False) and entry.name.isprintable():
            for item in list_files(root / entry.name, suffixes):
                if isinstance(item, Quarantined):
                    yield Quarantined(f"{entry.name}/{item.location}", item.reason)
                else:
                    yield f"{entry.name}/{item}"
        elif entry.name.lower().endswith(suffixes):
            if not entry.is_file(follow_symlinks=False):
                yield Quarantined(entry.name, "symbolic links and special files are not read")
            elif not entry.name.isprintable():
                yield Quarantined(repr(entry.name), "the file's name is not printable text")
            else:
                yield entry.name


def each_file(
    names: Iterable[str | Quarantined], read: Callable[[str], Iterator[T | Quarantined]]
) -> Iterator[T | Quarantined]:
    """All that ``read`` yields of each file; a file that it raises about is quarantined."""
    for name in names:
        if isinstance(name, Quarantined):
            yield name
            continue
        try:
            yield from read(name)
        except (InvalidArgumentError, NotFoundError) as error:
            yield Quarantined(name, str(error))


def text_lines(file: BinaryIO, limits: ReaderLimits) -> Iterator[tuple[int, str | None]]:
    """Numbered lines, None for one that is too long; bytes that are no UTF-8 become lone surrogates.

    ``clean_text`` refuses those, so that one bad line is quarantined and the file goes on.
    """
    number = 0
    while line := file.readline(limits.max_line_bytes + 1):
        number += 1
        if len(line) > limits.max_line_bytes:
            while line and not line.endswith(b"\n"):
                line = file.readline(1 << 16)
            yield number, None
            continue
        text = line.decode("utf-8", errors="surrogateescape")
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def json_lines(root: Root, relative: str, limits: ReaderLimits) -> Iterator[tuple[str, dict[str, Any]] | Quarantined]:
    """``(location, object)`` for each line of a JSONL file; a line that holds no JSON object is quarantined."""
    with open_inside(root, relative, max_bytes=limits.max_file_bytes) as file:
        for number, line in text_lines(file, limits):
            where = f"{relative}:{number}"
            if line is None:
                yield Quarantined(where, f"more than the limit of {limits.max_line_bytes} bytes in a line")
            elif line.strip():
                yield _parsed_object(line.strip(), where)


def json_array(root: Root, relative: str, limits: ReaderLimits) -> Iterator[tuple[str, dict[str, Any]] | Quarantined]:
    """``(location, object)`` for each element of a file that is one JSON array, one element in memory at a time.

    An element that is no object is quarantined. Where the JSON breaks, or an element is longer than a line may be,
    nobody can tell where the next one begins: the rest of the file is quarantined as one.
    """
    with open_inside(root, relative, max_bytes=limits.max_file_bytes) as file:
        elements = _Elements(file, limits.max_line_bytes)
        index = 0
        while True:
            where = f"{relative}[{index}]"
            try:
                found, value = elements.next(first=not index)
            except InvalidArgumentError as error:
                yield Quarantined(where if index else relative, f"{error}; what follows was not read")
                return
            if not found:
                return
            if isinstance(value, dict):
                yield where, value
            else:
                yield Quarantined(where, f"expected an object, found {type(value).__name__}")
            index += 1


class _Elements:
    """The elements of a JSON array in a file, parsed by the standard library from a window that slides over it."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text = ""
        self._at = 0  # where in the window the next token begins
        self._ended = False
        self._parser = json.JSONDecoder(parse_constant=_refuse_constant)

    def next(self, *, first: bool) -> tuple[bool, Any]:
        """``(True, element)``, or ``(False, None)`` behind the last one; ``InvalidArgumentError`` where it breaks."""
        mark = self._mark()
        if first:
            if mark != "[":
                raise invalid("JSON", "expected an array")
            self._at += 1
            mark = self._mark()
        elif mark == ",":
            self._at += 1
            self._mark()
            return True, self._element()
        if mark == "]":
            self._at += 1
            if self._mark():
                raise invalid("JSON", "text behind the end of the array")
            return False, None
        if not first:
            raise invalid("JSON", "ends within the array" if not mark else "expected ',' or ']' behind an element")
        return True, self._element()

    def _mark(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_ARRAY_CHUNK):
                return ""

    def _element(self) -> Any:
        """Parses at the mark, reading on where the window may end within the element."""
        while True:
            try:
                value, end = self._parser.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
                failure = None
            except json.JSONDecodeError as error:
                failure = invalid("JSON", error.msg)
                if error.pos < len(self._text) - _NEAR_END and not error.msg.startswith("Unterminated string"):
                    raise failure from None
            except (ValueError, RecursionError) as error:
                raise invalid("JSON", " ".join(str(error).split())) from None
            held = len(self._text) - self._at
            if held > self._max_bytes:
                raise invalid("JSON", f"more than the limit of {self._max_bytes} bytes in an element")
            if not self._more(max(_ARRAY_CHUNK, held)) and failure:  # twice as much each time: linear over all
                raise failure

    def _more(self, size: int) -> bool:
        """Drops what was parsed and reads on; whether there was anything."""
        data = self._file.read(size)
        self._ended = not data
        self._text = self._text[self._at :] + self._decode(data, self._ended)
        self._at = 0
        return bool(data)


def parse_json(text: str | bytes) -> Any:
    """Parses JSON; ``InvalidArgumentError`` says where it breaks."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise invalid("JSON", f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise invalid("JSON", " ".join(str(error).split())) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _parsed_object(line: str, where: str) -> tuple[str, dict[str, Any]] | Quarantined:
    try:
        value = parse_json(line)
    except InvalidArgumentError as error:
        return Quarantined(where, str(error))
    if not isinstance(value, dict):
        return Quarantined(where, f"expected a JSON object, found {type(value).__name__}")
    return where, value


def too_large(name: str, max_bytes: int) -> InvalidArgumentError:
    """The error of a file that is larger than it may be."""
    return invalid(name, f"more than the limit of {max_bytes} bytes")


def _parts(relative: str) -> list[str]:
    parts = relative.split("/")
    if relative.startswith("/") or "\0" in relative or "\\" in relative or ".." in parts:
        raise invalid(relative.replace("\0", "\\0"), "expected a path inside the source's folder")
    kept = [part for part in parts if part not in ("", ".")]
    if not kept:
        raise invalid("path", "is empty")
    return kept


def _opened(stack: ExitStack, path: Path | str, folder: int | None, flags: int, relative: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=folder)
    except FileNotFoundError:
        raise NotFoundError(f"{relative}: no such file") from None
    except NotADirectoryError:
        raise invalid(relative, "leads through a file or a symbolic link") from None
    except (OSError, ValueError) as error:
        if isinstance(path, str) and _is_link(path, folder):
            raise invalid(relative, "symbolic links are not read") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise invalid(relative, f"cannot be read: {reason}") from None
    stack.callback(os.close, descriptor)
    return descriptor


def _is_link(name: str, folder: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except (OSError, ValueError):
        return False
