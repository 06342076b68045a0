"""The images that the rows of a source name: by a path inside its folder or by a web address."""

from __future__ import annotations

import base64
import binascii
from functools import cached_property
from typing import Any

from rebus.data.fetching import Fetcher, is_web_address
from rebus.data.readers.base import ReaderLimits, Root, checked_image, clean_text
from rebus.data.readers.files import read_inside
from rebus.errors import InvalidArgumentError, invalid

_SHOWN = 120


class Pictures:
    """Reads, fetches or decodes one image at a time, and lets none through that does not decode whole.

    Every method raises ``InvalidArgumentError`` or ``NotFoundError`` saying what is wrong with the image.
    """

    def __init__(self, root: Root, limits: ReaderLimits, *, folder: str = "") -> None:
        self._root = root
        self._limits = limits
        # Inside the source's folder; relative names are relative to it.
        self._folder = folder

    def named(self, name: Any, field: str = "image") -> bytes:
        """The image of that name: a path, or an address of a host that images may be fetched from."""
        text = clean_text(name, field, self._limits)
        max_bytes = self._limits.image.max_bytes
        if is_web_address(text):
            data = self._fetcher.read(text, max_bytes=max_bytes)
        else:
            inside = f"{self._folder}/{text}" if self._folder and not text.startswith("/") else text
            data = read_inside(self._root, inside, max_bytes=max_bytes)
        return self.checked(data, text[:_SHOWN])

    def encoded(self, text: Any, field: str = "image") -> bytes:
        """The image in a base64 text."""
        if not isinstance(text, str):
            raise invalid(field, f"expected base64 text, found {type(text).__name__}")
        if len(text) > self._limits.image.max_bytes * 4 // 3 + 4:
            raise invalid(field, f"more than the limit of {self._limits.image.max_bytes} bytes")
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise invalid(field, f"not base64: {error}") from None
        return self.checked(data, field)

    def held(self, value: Any, field: str = "image") -> bytes:
        """The image in a cell: bytes, a ``{"bytes", "path"}`` pair as Hugging Face stores it, or a name."""
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            value = path if data is None else data
        return self.checked(value, field) if isinstance(value, bytes) else self.named(value, field)

    def checked(self, data: bytes, field: str) -> bytes:
        """``data`` once it has decoded whole."""
        try:
            return checked_image(data, field, self._limits)
        except MemoryError:
            raise InvalidArgumentError(f"{field}: more memory than there is to decode it") from None

    @cached_property
    def _fetcher(self) -> Fetcher:
        return Fetcher.from_environment()
