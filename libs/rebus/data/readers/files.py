"""Reading files of a source folder without leaving it.

Every component of a path is opened relative to the one before, without following symbolic links, so neither
``..`` nor a link, nor a link put there between a check and a read, leads outside.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rebus.data.readers.base import Quarantined, ReaderLimits
from rebus.errors import InvalidArgumentError, NotFoundError, invalid


@contextmanager
def open_inside(root: Path, relative: str) -> Iterator[BinaryIO]:
    """Opens a regular file below ``root`` for reading.

    ``NotFoundError`` if there is none; ``InvalidArgumentError`` for an absolute path, ``..``, a symbolic link or
    anything that is not a regular file.
    """
    parts = _parts(relative)
    with ExitStack() as stack:
        folder = _opened(stack, root, None, os.O_DIRECTORY, relative)
        for part in parts[:-1]:
            folder = _opened(stack, part, folder, os.O_DIRECTORY | os.O_NOFOLLOW, relative)
        # Non-blocking, so that a FIFO cannot hang the reader before its kind is known.
        file = _opened(stack, parts[-1], folder, os.O_NOFOLLOW | os.O_NONBLOCK, relative)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise invalid(relative, "not a regular file")
        yield stack.enter_context(os.fdopen(os.dup(file), "rb"))


def read_inside(root: Path, relative: str, *, max_bytes: int) -> bytes:
    """The bytes of a file below ``root``; errors as ``open_inside``, and one of more than ``max_bytes``."""
    with open_inside(root, relative) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise invalid(relative, f"more than the limit of {max_bytes} bytes")
    return data


def list_files(root: Path, suffixes: tuple[str, ...]) -> Iterator[str | Quarantined]:
    """Paths below ``root`` of files with one of ``suffixes``, sorted; links and special files are quarantined."""
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


def json_lines(root: Path, relative: str, limits: ReaderLimits) -> Iterator[tuple[str, dict[str, Any]] | Quarantined]:
    """``(location, object)`` for each line of a JSONL file; a line that holds no JSON object is quarantined."""
    with open_inside(root, relative) as file:
        for number, line in text_lines(file, limits):
            where = f"{relative}:{number}"
            if line is None:
                yield Quarantined(where, f"more than the limit of {limits.max_line_bytes} bytes in a line")
            elif line.strip():
                yield _parsed_object(line.strip(), where)


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
