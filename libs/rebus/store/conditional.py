"""Conditional writes whose answer may get lost: applied exactly once, and reported as what happened.

An answer that never arrives leaves open whether the write was applied, and a blind second attempt would find its own
first one and call it another writer's. So each write has an id, and every object that is written conditionally carries
the ids of the last writes behind its present state (``HISTORY`` of them, newest first) in its metadata. After a lost
answer the history is read back: it holds our id, or the id that we meant to replace, or neither.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, TypeAlias

import obstore
from obstore.store import MemoryStore, S3Store

from rebus.errors import AbortedError, AlreadyExistsError, NotFoundError, RebusError, UnavailableError
from rebus.store.failures import ConflictError, translated
from rebus.store.settings import StoreSettings

Backend: TypeAlias = S3Store | MemoryStore

# Ids: as many writes of others may come between a write and its answer. S3 allows 2 KiB of metadata, names included.
HISTORY = 200
# What the error of a write says whose outcome nobody can tell any more.
UNKNOWN = "whether it wrote cannot be known"
_ATTRIBUTE = "rebus-writes"
# The id of a create is marked, so that a history that reaches back to the object's creation is known to be whole.
_CREATE = "="
_SEPARATOR = " "
_ID_LENGTH = 8


@dataclass(frozen=True)
class Tag:
    """A state of an object: the server's tag and the ids of the writes that led there, newest first."""

    e_tag: str
    history: tuple[str, ...]

    @classmethod
    def of(cls, result: Any) -> Tag:
        """The tag of what obstore's ``get`` returned; objects that were written otherwise get an id of their tag."""
        e_tag = str(result.meta["e_tag"])
        ids = str(result.attributes.get(_ATTRIBUTE, "")).split()
        return cls(e_tag, tuple(ids) or (hashlib.sha256(e_tag.encode()).hexdigest()[:_ID_LENGTH],))

    @classmethod
    def parse(cls, text: str) -> Tag:
        """The inverse of ``str``."""
        e_tag, *ids = text.split(_SEPARATOR)
        return cls(e_tag, tuple(ids))

    def __str__(self) -> str:
        return _SEPARATOR.join((self.e_tag, *self.history))


class ConditionalWriter:
    """Create-if-absent and compare-and-swap over a backend that makes one attempt a call."""

    def __init__(self, backend: Backend, settings: StoreSettings) -> None:
        self._backend = backend
        self._settings = settings

    def create(self, path: str, data: bytes) -> str:
        """Writes the object if there is none and returns its tag; ``AlreadyExistsError`` otherwise.

        ``UnavailableError`` if the store did not answer, and it could not be found out whether it wrote.
        """
        own = f"{_CREATE}{_new_id()}"
        return self._write(path, data, "create", (own,), replaced=None)

    def swap(self, path: str, data: bytes, tag: str) -> str:
        """Replaces the object if it still has the tag and returns the new one.

        ``AbortedError`` if it has another tag, ``NotFoundError`` if it is gone.

        ``UnavailableError`` as with ``create``.
        """
        old = Tag.parse(tag)
        history = (_new_id(), *old.history)[:HISTORY]
        return self._write(path, data, {"e_tag": old.e_tag}, history, replaced=old.history[0])

    def _write(self, path: str, data: bytes, mode: Any, history: tuple[str, ...], *, replaced: str | None) -> str:
        attributes = {_ATTRIBUTE: _SEPARATOR.join(history)}
        open_question: UnavailableError | None = None
        failure: RebusError | None = None
        for _ in self._settings.attempts():
            try:
                with translated(path):
                    put = obstore.put(self._backend, path, data, mode=mode, use_multipart=False, attributes=attributes)
                return str(Tag(str(put["e_tag"]), history))
            except ConflictError as error:
                failure = error
            except UnavailableError as error:
                failure = open_question = error
            except (AlreadyExistsError, AbortedError, NotFoundError) as error:
                failure = error
                if open_question is None:
                    raise
                break
        assert failure is not None
        if open_question is None:
            raise failure
        return self._settle(path, history, replaced, failure)

    def _settle(self, path: str, written: tuple[str, ...], replaced: str | None, failure: RebusError) -> str:
        """The tag of the write whose history would be ``written``, if it took place; raises ``failure`` if it did not.

        ``UnavailableError`` if that cannot be known.
        """
        try:
            found = self._tag(path)
        except NotFoundError:
            found = Tag("", ())
            if replaced is None and isinstance(failure, UnavailableError):
                raise failure from None  # there is nothing, and the last attempt failed: nothing was created
        history = found.history
        if written[0] in history:
            # If others wrote since, the tag is of a state that has passed, which is what a later swap must be told.
            return str(found if history[0] == written[0] else Tag("superseded", written))
        if replaced is None:
            ours_is_ruled_out = bool(history) and history[-1].startswith(_CREATE)
        else:
            ours_is_ruled_out = replaced in history
        if ours_is_ruled_out:
            raise failure
        raise UnavailableError(
            f"{path}: the store did not answer, and {UNKNOWN}: it was changed since",
            metadata={"path": path},
        )

    def _tag(self, path: str) -> Tag:
        failure: UnavailableError | None = None
        for _ in self._settings.attempts():
            try:
                with translated(path):
                    return Tag.of(obstore.get(self._backend, path, options={"head": True}))
            except UnavailableError as error:
                failure = error
        assert failure is not None
        raise UnavailableError(f"{failure}; whether the object was written is unknown", metadata={"path": path})


def _new_id() -> str:
    return secrets.token_urlsafe(_ID_LENGTH * 3 // 4)
