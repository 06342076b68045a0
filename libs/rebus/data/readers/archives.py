"""Members of tar archives in order, one in memory at a time; an archive is data and nothing in it is believed.

Python's ``tarfile`` reads the headers. Around it stand the checks that it leaves out: a header's extensions (long
names, pax records, sparse maps) come out of a small budget of bytes, sizes must fit the file, offsets must grow, and
an archive must end with the mark that ends one; a broken header in the middle would otherwise pass for its end.
Nothing is extracted, so no name, link or device of an archive touches the file system.
"""

from __future__ import annotations

import gzip
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from rebus.data.readers.base import Quarantined, ReaderLimits, Root
from rebus.data.readers.files import open_inside, too_large
from rebus.errors import InvalidArgumentError, invalid

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_HEADER_BUDGET = 256 << 10
_MAX_NAME_CHARS = 1024
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file of an archive."""

    name: str
    data: bytes


def members(
    root: Root, archive: str, wanted: Callable[[str], int], limits: ReaderLimits
) -> Iterator[Member | Quarantined]:
    """The wanted regular files of an archive; ``wanted`` gives the most bytes of a name, 0 to skip it.

    What is bad of one member is quarantined under ``archive/member``; damage after which nobody can tell where the
    next member begins, and the limit on members, under ``archive``. ``InvalidArgumentError`` for what is no archive.
    """
    with _opened(root, archive, limits) as file:
        guarded = _Guarded(file)
        try:
            tar = tarfile.open(fileobj=cast(Any, guarded), mode="r:")  # noqa: SIM115 -- the file is closed by its own block
        except (tarfile.TarError, ValueError, RecursionError, OverflowError, UnicodeError) as error:
            raise invalid(archive, f"not a tar archive: {error}") from None
        yield from _walk(tar, guarded, archive, wanted, limits)


def _walk(
    tar: tarfile.TarFile, file: _Guarded, archive: str, wanted: Callable[[str], int], limits: ReaderLimits
) -> Iterator[Member | Quarantined]:
    before = -1
    for _ in range(limits.max_members):
        try:
            info = _next(tar, file, before)
            if info is None:
                return
            before = info.offset
            found = _member(info, file, archive, wanted)
        except InvalidArgumentError as error:
            yield Quarantined(archive, f"{error}; what follows was not read")
            return
        if found is not None:
            yield found
    if tar.next() is not None:
        yield Quarantined(archive, f"more than the limit of {limits.max_members} members; the rest was not read")


def _next(tar: tarfile.TarFile, file: _Guarded, before: int) -> tarfile.TarInfo | None:
    """The next header, None at the end; ``InvalidArgumentError`` where the archive is damaged."""
    file.start_header()
    try:
        info = tar.next()
    except (tarfile.TarError, ValueError, RecursionError, OverflowError, UnicodeError) as error:
        raise invalid("tar", f"corrupt or truncated: {error}") from None
    # tarfile keeps every header otherwise.
    tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
    if info is None:
        _check_end(tar, file)
    elif info.offset <= before or info.size < 0 or info.offset_data + info.size > file.size:
        raise invalid("tar", f"corrupt or truncated: a member of {info.size} bytes at byte {info.offset}")
    return info


def _check_end(tar: tarfile.TarFile, file: _Guarded) -> None:
    """Zeros must stand where tarfile saw an end."""
    file.seek(tar.offset)
    block = file.data(tarfile.BLOCKSIZE)
    if not block or block.strip(b"\0"):
        raise invalid("tar", f"corrupt or truncated: no header and no end mark at byte {tar.offset}")


def _member(
    info: tarfile.TarInfo, file: _Guarded, archive: str, wanted: Callable[[str], int]
) -> Member | Quarantined | None:
    """One member's content, or why it is not read; None for folders and what is not wanted."""
    shown = info.name[:_MAX_NAME_CHARS].encode("ascii", "backslashreplace").decode()
    where = f"{archive}/{shown if shown.isprintable() else ascii(shown)}"
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        return Quarantined(where, "links, devices and sparse files in archives are not read")
    problem = _name_problem(info.name)
    if problem:
        return Quarantined(where, problem)
    max_bytes = wanted(info.name)
    if not max_bytes:
        return None
    if info.size > max_bytes:
        return Quarantined(where, f"{info.size} bytes, more than the limit of {max_bytes}")
    file.seek(info.offset_data)
    data = file.data(info.size)
    if len(data) != info.size:
        raise invalid("tar", f"corrupt or truncated: {len(data)} of {info.size} bytes of a member are there")
    return Member(info.name, data)


def _name_problem(name: str) -> str:
    if len(name) > _MAX_NAME_CHARS:
        return f"a name of {len(name)} characters, more than the limit of {_MAX_NAME_CHARS}"
    if not name.isprintable():
        return "the member's name is not printable text"
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return "the member's name leads outside its archive"
    return ""


class _Guarded:
    """The file below a ``TarFile``: bounds what reading one header may read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._budget = _HEADER_BUDGET
        self.size = file.seek(0, 2)
        file.seek(0)

    def start_header(self) -> None:
        """A new header has a new budget."""
        self._budget = _HEADER_BUDGET

    def read(self, size: int = -1) -> bytes:
        """For tarfile alone."""
        self._budget -= size
        if size < 0 or self._budget < 0:
            raise tarfile.ReadError(f"a header of more than {_HEADER_BUDGET} bytes")
        return self._file.read(size)

    def data(self, size: int) -> bytes:
        """What a member holds."""
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As a file."""
        return self._file.tell()


@contextmanager
def _opened(root: Root, archive: str, limits: ReaderLimits) -> Iterator[BinaryIO]:
    """The archive's file; one inside gzip is unpacked to disk first, up to the limit of a file."""
    with open_inside(root, archive, max_bytes=limits.max_file_bytes) as file:
        if archive.lower().endswith(".tar"):
            yield file
            return
        with tempfile.TemporaryFile(prefix="rebus-archive-") as unpacked:
            _unpack(file, unpacked, archive, limits)
            unpacked.seek(0)
            yield unpacked


def _unpack(file: BinaryIO, target: Any, archive: str, limits: ReaderLimits) -> None:
    """Damage ends the archive where it stands, so that the members before it are read."""
    written = 0
    with gzip.GzipFile(fileobj=file) as stream:
        while True:
            try:
                chunk = stream.read1(_CHUNK)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                if not written:
                    raise invalid(archive, f"not gzip, or truncated: {error}") from None
                return
            if not chunk:
                return
            written += len(chunk)
            if written > limits.max_file_bytes:
                raise too_large(archive, limits.max_file_bytes)
            target.write(chunk)
