"""Web pages: their texts and images in the order in which a browser shows them.

The page is parsed as a stream of tags and never becomes a tree, so that neither depth nor the repairs that HTML
prescribes for unclosed tags can make more of a page than it is.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] -- compiled, without stubs

from rebus.data.fetching import is_web_address
from rebus.data.readers.base import Draft, DraftingReader, Location, Quarantined, ReaderLimits
from rebus.data.readers.files import check_inside, each_file, list_files, read_inside
from rebus.data.readers.interleaved import Document, InterleavedSettings, Picture, check_segments
from rebus.data.readers.pictures import Pictures
from rebus.data.sample import Sample
from rebus.errors import invalid
from rebus.registry import register

_SUFFIXES = (".html", ".htm", ".xhtml")
_CHUNK = 1 << 16
# fmt: off
# Elements whose content nobody reads. (``title`` is read for the metadata.)
_SILENT = frozenset({
    "audio", "canvas", "head", "iframe", "math", "noscript", "object", "script", "select", "style", "svg",
    "template", "textarea", "video",
})
# Elements within a line of text; every other one begins and ends a paragraph.
_INLINE = frozenset({
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i",
    "img", "ins", "kbd", "label", "mark", "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike",
    "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
})
# Elements that are never closed.
_VOID = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr",
})
# fmt: on
_BLANKS = re.compile(r"[ \t\r\n\f]+")
_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class HtmlConfig(InterleavedSettings):
    """Which pages, and where their images are."""

    # Pages inside the folder; empty: every .html, .htm and .xhtml below it. A URI that names a file reads that one.
    files: list[str] = field(default_factory=list)
    encoding: str = "utf-8"
    # The address that the pages come from. With it, images whose names are addresses below it are looked up in the
    # folder, e.g. ``https://example.org/site/``.
    base_url: str = ""


@register("reader", "html", config=HtmlConfig)
class HtmlReader(DraftingReader):
    """Web pages with their images, text and images in the order of the page."""

    def __init__(self, config: HtmlConfig, location: Location) -> None:
        self._config = config
        self._root = location.root
        self._files = [location.file] if location.file else config.files
        self._source = config.source or location.label
        self._pictures = Pictures(self._root, config.limits)
        try:
            b"".decode(config.encoding)
        except LookupError:
            raise invalid("settings.encoding", f"unknown encoding {config.encoding!r}") from None
        for name in self._files:
            check_inside(self._root, name)

    def drafts(self) -> Iterator[Draft | Quarantined]:
        yield from each_file(self._files or list_files(self._root, _SUFFIXES), self._read)

    def _read(self, name: str) -> Iterator[Draft | Quarantined]:
        yield Draft(name, lambda: self._sample(name))

    def _sample(self, name: str) -> Sample:
        page = self._page(name)
        parts = (part if isinstance(part, str) else self._picture(part[0], name) for part in page.parts)
        title = page.title.strip()
        metadata = {"file": name, "title": title} if title else {"file": name}
        return Document(self._config).sample(self._source, name, parts, metadata)

    def _page(self, name: str) -> _Page:
        limits = self._config.limits
        data = read_inside(self._root, name, max_bytes=limits.max_document_bytes)
        try:
            text = data.decode(self._config.encoding).removeprefix("\ufeff").replace("\0", "\ufffd")
        except UnicodeDecodeError as error:
            raise invalid(name, f"not {self._config.encoding}: byte {error.start}") from None
        page = _Page(limits)
        parser = etree.HTMLParser(target=page, encoding="utf-8", no_network=True)
        encoded = text.encode(errors="replace")
        try:
            for start in range(0, len(encoded), _CHUNK):
                parser.feed(encoded[start : start + _CHUNK])
            parser.close()
        except etree.LxmlError as error:
            raise invalid(name, f"not HTML: {' '.join(str(error).split())[:_SHOWN]}") from None
        return page

    def _picture(self, source: str, page: str) -> Picture:
        return Picture(source[:_SHOWN], lambda: self._image(source, page))

    def _image(self, source: str, page: str) -> bytes:
        """An image by its ``src``: within the page (``data:``), in the folder, or on the web."""
        if source[:5].lower() == "data:":
            header, _, content = source.partition(",")
            if header.lower().endswith(";base64"):
                return self._pictures.encoded(content, "src")
            return self._pictures.checked(unquote_to_bytes(content), "src")
        try:
            return self._addressed(source, page)
        except ValueError as error:  # of an address that is none
            raise invalid("src", f"{error}") from None

    def _addressed(self, source: str, page: str) -> bytes:
        base = self._config.base_url
        address = urljoin(base, source) if base else f"https:{source}" if source.startswith("//") else source
        if base and address.startswith(base):
            return self._pictures.named(_path(address.removeprefix(base), ""))
        if is_web_address(address):
            return self._pictures.named(address, "src")
        scheme = urlsplit(source).scheme
        if scheme:
            raise invalid("src", f"images by {scheme[:_SHOWN]}: are not read")
        return self._pictures.named(_path(source, posixpath.dirname(page)))


class _Page:
    """Receives a page's tags from lxml and keeps texts and images in order."""

    def __init__(self, limits: ReaderLimits) -> None:
        # A text, or the ``src`` of an image in a tuple.
        self.parts: list[str | tuple[str]] = []
        self.title = ""
        self._limits = limits
        self._depth = 0
        # Silent elements that are open, and whether one is the title.
        self._silent = 0
        self._in_title = False
        self._texts: list[str] = []

    def start(self, tag: Any, attributes: Any) -> None:
        """A tag opens."""
        if tag not in _VOID:
            self._depth += 1
            if self._depth > self._limits.max_depth:
                raise invalid("html", f"tags more than {self._limits.max_depth} deep")
        if tag == "title" and not self.title:
            self._in_title = True
        if tag in _SILENT:
            self._silent += 1
        elif tag not in _INLINE:
            self._texts.append("\n")
        if tag == "img" and not self._silent:
            source = (attributes.get("src") or "").strip()
            if source:
                self._end_text()
                self._add((source,))

    def end(self, tag: Any) -> None:
        """A tag closes."""
        if tag not in _VOID:
            self._depth -= 1
        if tag == "title":
            self._in_title = False
        if tag in _SILENT:
            self._silent -= 1
        elif tag not in _INLINE:
            self._texts.append("\n")

    def data(self, data: str) -> None:
        """Text between tags."""
        if self._in_title and self._silent == 1:
            self.title = _BLANKS.sub(" ", self.title + data).lstrip()[:_SHOWN]
        elif not self._silent:
            self._texts.append(_BLANKS.sub(" ", data))

    def comment(self, text: str) -> None:
        """Comments are left out."""

    def close(self) -> None:
        """The page ends."""
        self._end_text()

    def _end_text(self) -> None:
        lines = (_BLANKS.sub(" ", line).strip() for line in "".join(self._texts).split("\n"))
        self._texts = []
        text = "\n".join(line for line in lines if line)
        if text:
            self._add(text)

    def _add(self, part: str | tuple[str]) -> None:
        self.parts.append(part)
        check_segments(len(self.parts), self._limits)


def _path(source: str, folder: str) -> str:
    """The path inside the source's folder that a page in ``folder`` means by ``source``."""
    path = unquote_to_bytes(urlsplit(source).path).decode(errors="surrogateescape")
    joined = path.lstrip("/") if path.startswith("/") else posixpath.join(folder, path)
    return posixpath.normpath(joined)  # what leads outside still begins with ``..`` and is refused
