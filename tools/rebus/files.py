"""Pictures between files and messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rebus.client import Client
from rebus.errors import invalid
from rebus.v1.common_pb2 import Sample

# Larger pictures are uploaded and referred to, so that a message of many stays within what a server accepts.
MAX_INLINE_BYTES = 64 << 10
MAX_IMAGE_BYTES = 32 << 20  # the contract's own bound; checked here so that nothing larger is read or sent
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


def read_image(path: Path, option: str = "--image") -> bytes:
    """A picture's bytes; the service checks what is in them."""
    try:
        size = path.stat().st_size
        if path.is_file() and 0 < size <= MAX_IMAGE_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise invalid(option, f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    if not path.is_file():
        raise invalid(option, f"{path} is not a file")
    raise invalid(option, f"{path} has {size} bytes; expected 1 to {MAX_IMAGE_BYTES}")


def image_content(client: Client, path: Path) -> dict[str, Any]:
    """A picture as the content of a ``Segment`` or a ``Query``: its bytes, or the name of what was uploaded."""
    data = read_image(path)
    return {"image": data} if len(data) <= MAX_INLINE_BYTES else {"image_ref": client.upload(data)}


def services_for(images: Sequence[Path], *services: str) -> tuple[str, ...]:
    """The services that a command needs for its pictures, beside its own: uploads go to ``ingest``."""
    return (*services, "ingest") if any(len(read_image(path)) > MAX_INLINE_BYTES for path in images) else services


def save_images(sample: Sample, folder: Path, prefix: str) -> list[Path]:
    """Writes a sample's pictures to a folder, which is made if absent; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.-]+", "_", f"{prefix}{sample.id}")
    paths: list[Path] = []
    for segment in sample.segments:
        if segment.WhichOneof("content") == "image":
            suffix = next((s for magic, s in _SUFFIXES.items() if segment.image.startswith(magic)), ".bin")
            number = f"-{len(paths)}" if paths else ""
            paths.append(folder / f"{stem}{number}{suffix}")
            paths[-1].write_bytes(segment.image)
    return paths


def caption_of(sample: Sample) -> str:
    """The first text that the sample holds on its picture."""
    texts = [s.text for s in sample.segments if s.WhichOneof("content") == "text"]
    captions = [s.text for s in sample.segments if s.task == "caption" and s.text]
    return next(iter(captions or texts), "")
