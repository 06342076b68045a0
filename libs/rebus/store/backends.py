"""Where a store's URL leads: a folder, this process's memory, or a bucket."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from obstore.store import LocalStore, MemoryStore, S3Store

from rebus.errors import invalid
from rebus.store.settings import StoreSettings

AnyBackend: TypeAlias = LocalStore | MemoryStore | S3Store

_BAD_URL = "expected file:///absolute/folder or s3://bucket/prefix"
_memories: dict[str, MemoryStore] = {}
_memories_lock = threading.Lock()


@dataclass(frozen=True)
class Backends:
    """One store as obstore sees it."""

    url: str
    # Makes one attempt a call: the store itself tries again, since only it knows which failures leave a question open.
    once: AnyBackend
    # Tries again by itself; for uploads in parts, where a failed part must not cost those before it.
    patient: AnyBackend
    # The folder of a ``file://`` store.
    root: Path | None


def open_backends(url: str, settings: StoreSettings) -> Backends:
    """Opens ``file:///folder`` (made if absent), ``memory://name`` or ``s3://bucket/prefix``; raises on all else."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise invalid("store", f"{url!r}: {_BAD_URL}")
        return _open_folder(Path(unquote(parts.path)))
    if parts.scheme == "memory" and not parts.path.strip("/"):
        return _open_memory(f"memory://{parts.netloc}")
    if parts.scheme == "s3" and parts.netloc:
        return _open_bucket(url, parts.netloc, parts.path.strip("/"), settings)
    raise invalid("store", f"{url!r}: {_BAD_URL}")


def _open_folder(root: Path) -> Backends:
    try:
        root.mkdir(parents=True, exist_ok=True)
        backend = LocalStore(str(root), mkdir=True)
    except OSError as error:
        raise invalid("store", f"cannot use {root}: {error.strerror or error}") from None
    return Backends(root.absolute().as_uri(), backend, backend, root.absolute())


def _open_memory(url: str) -> Backends:
    with _memories_lock:
        backend = _memories.setdefault(url, MemoryStore())
    return Backends(url, backend, backend, None)


def _open_bucket(url: str, bucket: str, prefix: str, settings: StoreSettings) -> Backends:
    allow_http = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")

    def backend(retries: StoreSettings) -> S3Store:
        return S3Store(
            bucket,
            prefix=prefix or None,
            config={"conditional_put": "etag", "virtual_hosted_style_request": False},
            client_options={"allow_http": allow_http, **retries.client_options()},
            retry_config=retries.retry_config(),
        )

    return Backends(url.rstrip("/"), backend(settings.single_attempt()), backend(settings), None)
