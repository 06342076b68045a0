"""Paths within a store: which ones every backend can hold, and none that could leave it."""

from __future__ import annotations

import re

from rebus.errors import InvalidArgumentError

# What makes the objects beside it visible as one resource; written last, removed first.
MANIFEST = "manifest.json"
# Lock files of a folder store; never listed.
LOCKS = ".locks"
MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 240  # a file's name has at most 255 bytes, and a name being written gets a suffix
# A backslash is a separator to some servers; obstore parses no control characters.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
# What obstore calls a file of a folder store while it is being written.
STAGED = re.compile(r"#\d+$")


def checked(path: str) -> str:
    """The path itself; ``InvalidArgumentError`` if it could leave the store or not every backend can hold it."""
    segments = path.split("/")
    encoded = [segment.encode("utf-8", "replace") for segment in segments]
    if (
        sum(map(len, encoded)) + len(segments) - 1 > MAX_PATH_BYTES
        or any(segment in ("", ".", "..") or STAGED.search(segment) for segment in segments)
        or any(len(segment) > MAX_SEGMENT_BYTES for segment in encoded)
        or segments[0] == LOCKS
        or _FORBIDDEN.search(path)
    ):
        raise InvalidArgumentError(f"{path!r} is not a path within the store")
    return path


def is_staged(path: str) -> bool:
    """Whether it is a file of a folder store whose writing did not end."""
    return STAGED.search(path) is not None
