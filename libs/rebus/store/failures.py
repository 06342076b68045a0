"""The backend's failures as domain errors that name the path."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from obstore import exceptions as ob

from rebus.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RebusError,
    ResourceExhaustedError,
    UnavailableError,
)

_STATUS = re.compile(r"status code: (\d{3})")
_NO_SPACE = re.compile(r"os error (28|122)\b|No space left|Disk quota exceeded")
_BEYOND_THE_END = re.compile(r"status code: 416|Requested range was invalid|InvalidRange|StartTooLarge")
# A conditional write met another one under way: try again, and it is known that nothing was written.
_CONFLICT = 409


class RangeBeyondEndError(InvalidArgumentError):
    """A range starts at or behind the object's end."""


class ConflictError(AbortedError):
    """Another writer of the same object is at work; nothing was written."""


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turns what obstore and the operating system raise into domain errors.

    ``UnavailableError`` means that another attempt may succeed.
    """
    try:
        yield
    except RebusError:
        raise
    except Exception as error:
        _raise(error, path)


def _raise(error: Exception, path: str) -> NoReturn:
    text, where = str(error).partition("\n")[0], {"path": path}
    if isinstance(error, FileNotFoundError | ob.NotFoundError):
        raise NotFoundError(f"no object {path}", metadata=where) from None
    if isinstance(error, ob.AlreadyExistsError):
        raise AlreadyExistsError(f"{path} exists", metadata=where) from None
    if isinstance(error, ob.PreconditionError | ob.NotModifiedError):
        raise AbortedError(f"{path} was changed by another writer", metadata=where) from None
    if isinstance(error, ob.PermissionDeniedError | ob.UnauthenticatedError | PermissionError):
        raise PermissionDeniedError(f"{path}: access was refused: {text}") from None
    if _is_no_space(error):
        raise ResourceExhaustedError(f"{path}: no space left on the device", metadata=where) from None
    if isinstance(error, ob.BaseError | OSError):
        _raise_by_status(text, str(error), path)
    raise error


def _raise_by_status(text: str, whole: str, path: str) -> NoReturn:
    where, found = {"path": path}, _STATUS.search(whole)
    status = int(found[1]) if found else 0
    if _BEYOND_THE_END.search(whole):
        raise RangeBeyondEndError(f"{path}: the range starts at or behind the object's end", metadata=where) from None
    if status == _CONFLICT:
        raise ConflictError(f"{path}: another writer is at work", metadata=where) from None
    if 400 <= status < 500 and status not in (408, 429):
        raise FailedPreconditionError(f"{path}: the store refused the request: {text}", metadata=where) from None
    raise UnavailableError(f"{path}: the store failed: {text}", metadata=where) from None


def _is_no_space(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, ob.BaseError | OSError) and _NO_SPACE.search(str(error)) is not None
