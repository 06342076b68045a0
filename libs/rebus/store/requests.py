"""Mutations that are carried out once, however often their request comes.

A request that carries a ``request_id`` leaves a record: the digest of what was asked, and the resource it is about. A
repeat is recognised by the record, also after a restart and by another replica, and is answered with the first
result as it is now; the same id with another body is refused. What makes the effect happen once is that the
request's key is written into the resource's document together with the change (see ``documents``): of two repeats at
the same moment one wins, and after a crash in between a repeat carries the request out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from google.protobuf.message import Message

from rebus.config import digest
from rebus.errors import AlreadyExistsError, NotFoundError, invalid
from rebus.store import documents
from rebus.store.objects import Store
from rebus.store.sealed import seal, unseal

FOLDER = "requests"


@dataclass(frozen=True)
class Claim:
    """A request as the store remembers it.

    ``key`` tells the request apart from all others and is empty where the caller gave no id; ``name`` is the resource
    of the first request; ``repeated`` says that there was one.
    """

    key: str
    name: str
    repeated: bool = False
    done: bool = False


def claim(store: Store, request: Message, name: str) -> Claim:
    """Records that ``request`` is about the resource ``name``, or finds the record of its first time.

    Raises ``InvalidArgumentError`` naming ``request_id`` if that was used for a request with another body.
    """
    request_id: str = request.request_id  # pyright: ignore[reportAttributeAccessIssue]
    if not request_id:
        return Claim("", name)
    key = digest([request.DESCRIPTOR.full_name, request_id])
    content = {"name": name, "digest": _digest(request)}
    try:
        store.create(_path(key), seal(content))
        return Claim(key, name)
    except AlreadyExistsError:
        first = unseal(store.get(_path(key)), _path(key))
    if first["digest"] != content["digest"]:
        raise invalid("request_id", "was used for another request; a repeat must equal the first in every field")
    return Claim(key, first["name"], repeated=True, done=first.get("done", False))


def delete(store: Store, request: Message) -> None:
    """Removes the resource that ``request`` names; ``NotFoundError`` if there is none.

    A repeat does nothing, also where the name is in use again. Nothing is left to write the key into, so the record
    itself says that the request was carried out.
    """
    claimed = claim(store, request, request.name)  # pyright: ignore[reportAttributeAccessIssue]
    if claimed.done:
        return
    try:
        documents.delete(store, claimed.name)
    except NotFoundError:
        if not claimed.repeated:
            _forget(store, claimed)  # a repeat must not look like a success
            raise
    if claimed.key:
        store.put(_path(claimed.key), seal({"name": claimed.name, "digest": _digest(request), "done": True}))


def _forget(store: Store, claimed: Claim) -> None:
    if claimed.key:
        store.delete(_path(claimed.key))


def _digest(request: Message) -> str:
    """SHA-256 of the request without its id; unknown fields do not count.

    Of its bytes, not of its JSON: an ``Any`` of an unknown type and a number that is not finite have none.
    """
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    content.DiscardUnknownFields()
    return hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()


def _path(key: str) -> str:
    return f"{FOLDER}/{key}.json"
