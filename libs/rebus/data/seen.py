"""Which ids were met already, in bounded memory however many there are."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable

_DIGEST_BYTES = 16
_CACHE_KIB = 8 << 10


class SeenIds:
    """A set of ids, kept as 128-bit digests in a temporary file behind a cache of 8 MiB.

    The file (about 25 bytes an id, in SQLite's folder for such files: ``TMPDIR``) has no name and goes with the
    process. Two of a million ids share a digest with probability 1e-27. For one thread at a time, whichever it is.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        # Nothing of it outlives the process, so nothing has to be safe from its death.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, identifier: str) -> bool:
        """Whether the id is new; it is not from now on."""
        cursor = self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (_digest(identifier),))
        return cursor.rowcount == 1

    def update(self, identifiers: Iterable[str]) -> None:
        """Adds many."""
        digests = ((_digest(identifier),) for identifier in identifiers)
        self._database.executemany("INSERT OR IGNORE INTO seen VALUES (?)", digests)

    def close(self) -> None:
        """Removes the file."""
        self._database.close()


def _digest(identifier: str) -> bytes:
    return hashlib.blake2b(identifier.encode(), digest_size=_DIGEST_BYTES).digest()
