"""Resource documents: one sealed JSON object a resource, the resource's own proto message.

``runs/x`` lives at ``runs/x/run.json``; its message type is known from the name's collection ids. Beside the
message, the object keeps the keys of the requests that last changed it (see ``rebus.store.requests``).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from rebus.errors import AbortedError, AlreadyExistsError, NotFoundError, invalid
from rebus.store.objects import Store
from rebus.store.paths import MANIFEST
from rebus.store.sealed import seal, unseal
from rebus.v1 import dataset_pb2, evaluation_pb2, model_pb2, retrieval_pb2, training_pb2

M = TypeVar("M", bound=Message)

TYPES: dict[str, type[Message]] = {
    "datasets": dataset_pb2.Dataset,
    "datasets/versions": dataset_pb2.DatasetVersion,
    "ingestions": dataset_pb2.Ingestion,
    "curations": dataset_pb2.Curation,
    "runs": training_pb2.Run,
    "models": model_pb2.Model,
    "models/versions": model_pb2.ModelVersion,
    "indexes": retrieval_pb2.Index,
    "evaluations": evaluation_pb2.Evaluation,
}
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
_SWAP_ATTEMPTS = 64
# Not the name of any proto field.
_REQUESTS = "@requests"
_REQUESTS_KEPT = 64


def type_of(name: str) -> type[Message]:
    """The message type of a resource name; ``InvalidArgumentError`` for a name of no collection."""
    collections = "/".join(name.split("/")[::2])
    if collections not in TYPES or len(name.split("/")) % 2:
        raise invalid("name", f"{name!r} is not the name of a resource")
    return TYPES[collections]


def collection_of(cls: type[Message]) -> str:
    """The collection of a message type: ``runs`` of ``Run``."""
    return next(key for key, value in TYPES.items() if value is cls)


def path_of(name: str) -> str:
    """Where a resource's document is stored."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type_of(name).DESCRIPTOR.name).lower()
    return f"{name}/{snake}.json"


def encode(message: Message, requests: Sequence[str] = ()) -> bytes:
    """A message as sealed canonical proto JSON, with the keys of the requests that changed it."""
    content = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return seal({**content, _REQUESTS: list(requests)[-_REQUESTS_KEPT:]} if requests else content)


def decode(data: bytes, cls: type[M], where: str) -> M:
    """The inverse of ``encode``; ``DataLossError`` if the bytes were altered."""
    return json_format.ParseDict(unseal(data, where), cls(), ignore_unknown_fields=True)


def create(store: Store, message: M, *, request_key: str = "") -> M:
    """Stores a new resource under its ``name``; ``AlreadyExistsError`` if that is taken.

    With a ``request_key``, a resource that this very request created is returned as it is now.
    """
    name = _name(message)
    try:
        store.create(path_of(name), encode(message, _keys(request_key)))
        return message
    except AlreadyExistsError:
        if request_key:
            stored = _read(store, type(message), name)
            if request_key in stored.requests:
                return stored.message
        raise AlreadyExistsError(f"{name} exists", metadata={"name": name}) from None


def get(store: Store, cls: type[M], name: str) -> M:
    """The resource of that name; ``NotFoundError`` if there is none."""
    return _read(store, cls, name).message


def update(store: Store, cls: type[M], name: str, mutate: Callable[[M], None]) -> M:
    """Changes a resource by compare-and-swap: ``mutate`` edits a fresh copy and runs again if another writer won."""
    return update_once(store, cls, name, mutate, request_key="")[0]


def update_once(
    store: Store, cls: type[M], name: str, mutate: Callable[[M], None], *, request_key: str
) -> tuple[M, bool]:
    """``update``, but a resource that the request of this key has changed before is returned as it is now.

    The second value tells whether this call made the change. An empty key stands for no request.
    """
    for _ in range(_SWAP_ATTEMPTS):
        stored = _read(store, cls, name)
        message = stored.message
        if request_key and request_key in stored.requests:
            return message, False
        before = encode(message, stored.requests)
        mutate(message)
        after = encode(message, [*stored.requests, *_keys(request_key)])
        if after == before:
            return message, True
        try:
            store.swap(path_of(name), after, stored.tag)
            return message, True
        except AbortedError:
            continue
    raise AbortedError(f"{name}: other writers won {_SWAP_ATTEMPTS} times in a row; try again")


def delete(store: Store, name: str) -> None:
    """Removes a resource with all that lies below it; ``NotFoundError`` if there is none.

    The document goes first, so that a reader never finds a resource whose parts are half gone; the manifests next, so
    that whatever a kill leaves behind is referred to by nothing and gc removes it.
    """
    path = path_of(name)
    if not store.exists(path):
        raise NotFoundError(f"no {name}", metadata={"name": name})
    store.delete(path)
    for info in store.scan(name):
        if info.path.endswith(f"/{MANIFEST}"):
            store.delete(info.path)
    store.delete_prefix(name)


def list_page(
    store: Store,
    cls: type[M],
    *,
    parent: str = "",
    page_size: int = 0,
    page_token: str = "",
    newest_first: bool = False,
) -> tuple[list[M], str]:
    """One page of a collection (below ``parent`` for versions) and the token of the next.

    Ids are time-ordered, so the newest come first in descending order of id; numbers are ordered as numbers.
    """
    size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    prefix = _prefix(cls, parent)
    ids = sorted(store.folders(prefix), key=_order, reverse=newest_first)
    ids = ids[_start(ids, page_token) :]
    items: list[M] = []
    for position, identifier in enumerate(ids):
        if len(items) == size:
            return items, base64.urlsafe_b64encode(ids[position - 1].encode()).decode()
        try:
            items.append(get(store, cls, f"{prefix}/{identifier}"))
        except NotFoundError:
            continue  # a folder whose document was not written yet, or was removed
    return items, ""


def list_all(store: Store, cls: type[M], *, parent: str = "") -> Iterator[M]:
    """Every resource of a collection, page by page."""
    token = ""
    while True:
        items, token = list_page(store, cls, parent=parent, page_size=MAX_PAGE_SIZE, page_token=token)
        yield from items
        if not token:
            return


def _prefix(cls: type[Message], parent: str) -> str:
    collections = next(key for key, value in TYPES.items() if value is cls)
    last = collections.rpartition("/")[2]
    return f"{parent}/{last}" if parent else last


def _order(identifier: str) -> tuple[int, str]:
    return (int(identifier), "") if identifier.isdigit() else (0, identifier)


def _start(ids: list[str], page_token: str) -> int:
    if not page_token:
        return 0
    try:
        return ids.index(base64.urlsafe_b64decode(page_token.encode()).decode()) + 1
    except (ValueError, binascii.Error):
        raise invalid("page_token", "not a token of this listing; start again without one") from None


@dataclass(frozen=True)
class _Stored(Generic[M]):
    """A document as it was read: the message, the keys of its requests, and the tag that a swap compares."""

    message: M
    requests: list[str]
    tag: str


def _read(store: Store, cls: type[M], name: str) -> _Stored[M]:
    path = path_of(name)
    try:
        data, tag = store.get_tagged(path)
    except NotFoundError:
        raise NotFoundError(f"no {name}", metadata={"name": name}) from None
    content = unseal(data, path)
    requests = content.pop(_REQUESTS, [])
    return _Stored(json_format.ParseDict(content, cls(), ignore_unknown_fields=True), requests, tag)


def _keys(request_key: str) -> list[str]:
    return [request_key] if request_key else []


def _name(message: Message) -> str:
    return message.name  # pyright: ignore[reportAttributeAccessIssue]
