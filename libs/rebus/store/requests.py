"""Mutations that are carried out once, however often their request comes.

A request that carries a ``request_id`` leaves a record: the digest of what was asked, and the resource it is about. A
repeat is recognised by the record, also after a restart and by another replica, and is answered with the first
result as it is now; the same id with another body is refused. What makes the effect happen once is that the
request's key is written into the resource's document together with the change (see ``documents``): of two repeats at
the same moment one wins, and after a crash in between a repeat carries the request out.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
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
    if not request.request_id:  # pyright: ignore[reportAttributeAccessIssue]
        return Claim("", name)
    key, content = _key(request), {"name": name, "digest": _digest(request)}
    try:
        store.create(_path(key), seal(content))
        return Claim(key, name)
    except AlreadyExistsError:
        return _first(store, request)


def delete(store: Store, request: Message) -> None:
    """Removes the resource that ``request`` names; ``NotFoundError`` if there is none.

    A repeat does nothing, also where the name is in use again. Nothing is left to write the key into, so the record
    itself says that the request was carried out; a resource that was never there leaves no record, since a repeat must
    not look like a success.
    """
    name: str = request.name  # pyright: ignore[reportAttributeAccessIssue]
    if not request.request_id:  # pyright: ignore[reportAttributeAccessIssue]
        documents.delete(store, name)
        return
    # Looked at before the record: where the resource is gone and there is no record, no repeat removed it.
    found = store.exists(documents.path_of(name))
    try:
        claimed = _first(store, request)
    except NotFoundError:
        if not found:
            raise NotFoundError(f"no {name}", metadata={"name": name}) from None
        claimed = claim(store, request, name)
    if claimed.done:
        return
    with suppress(NotFoundError):  # a repeat at the same moment was faster
        documents.delete(store, claimed.name)
    store.put(_path(claimed.key), seal({"name": claimed.name, "digest": _digest(request), "done": True}))


def _first(store: Store, request: Message) -> Claim:
    """The claim that the first request with this id left; ``NotFoundError`` if none did."""
    key = _key(request)
    record = unseal(store.get(_path(key)), _path(key))
    if record["digest"] != _digest(request):
        raise invalid("request_id", "was used for another request; a repeat must equal the first in every field")
    return Claim(key, record["name"], repeated=True, done=record.get("done", False))


def _key(request: Message) -> str:
    request_id: str = request.request_id  # pyright: ignore[reportAttributeAccessIssue]
    return digest([request.DESCRIPTOR.full_name, request_id])


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
