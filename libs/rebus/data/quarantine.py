"""The bad samples that a job left out, beside the job: ``<job>/quarantine.jsonl``, a line each."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from rebus.data.readers.base import Quarantined
from rebus.errors import NotFoundError
from rebus.store import Store
from rebus.v1.dataset_pb2 import QuarantinedSample

FILE = "quarantine.jsonl"


def write_quarantine(store: Store, name: str, items: Iterable[Quarantined]) -> None:
    """Stores the list of the job ``name``, by way of a file, since it may be longer than memory."""
    with tempfile.NamedTemporaryFile(prefix="rebus-quarantine-", suffix=".jsonl") as file:
        file.writelines(map(_line, items))
        file.flush()
        store.upload(Path(file.name), f"{name}/{FILE}")


def read_quarantine(store: Store, name: str) -> Iterator[QuarantinedSample]:
    """What a job left out, in the order in which it was met; nothing before the job has ended."""
    held = b""
    try:
        for chunk in store.chunks(f"{name}/{FILE}"):
            *lines, held = (held + chunk).split(b"\n")
            yield from (QuarantinedSample(**json.loads(line)) for line in lines)
    except NotFoundError:
        return


def _line(item: Quarantined) -> bytes:
    """A reason may quote bad input."""
    text = json.dumps({"location": printable(item.location), "reason": printable(item.reason)}, ensure_ascii=False)
    return f"{text}\n".encode()


def printable(text: str) -> str:
    """``text`` with lone surrogates, which no JSON document can hold, escaped."""
    return text.encode(errors="backslashreplace").decode()
