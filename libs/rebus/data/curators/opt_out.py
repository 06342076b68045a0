"""What its owners do not want to be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from rebus import config as configs
from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.registry import register
from rebus.store import Store


@dataclass(frozen=True, kw_only=True)
class OptOuts:
    """Lists of what is left out."""

    # With all their subdomains.
    domains: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    # Of samples or families.
    ids: tuple[str, ...] = ()
    # Of media, in hex.
    sha256: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OptOutConfig(OptOuts):
    """The lists, and an object of the store, if any, that holds more of the same in JSON."""

    object: str = ""


@register("curator", "opt-out", config=OptOutConfig)
class OptOut(Curator):
    """Drops samples whose id, family, media or URLs (any in their metadata) are on an opt-out list."""

    reads = ("id", "family", "metadata", "media_sha256")

    def __init__(self, config: OptOutConfig) -> None:
        self._config = config
        self._lists = [OptOuts(**{name: getattr(config, name) for name in OptOuts.__dataclass_fields__})]

    def prepare(self, store: Store) -> None:
        """Reads the object of the store."""
        if self._config.object:
            values = configs.parse_yaml(store.get(self._config.object).decode(), where=self._config.object)
            self._lists.append(configs.build(OptOuts, values, where=self._config.object))

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Looks each row up."""
        domains, urls, ids, media = (
            {value.lower() for lists in self._lists for value in getattr(lists, name)}
            if name in ("domains", "sha256")
            else {value for lists in self._lists for value in getattr(lists, name)}
            for name in ("domains", "urls", "ids", "sha256")
        )
        reasons = []
        for identifier, family, metadata, digests in zip(
            *(observed.column(name).to_pylist() for name in self.reads), strict=True
        ):
            found = [f"id {value}" for value in (identifier, family) if value in ids]
            found += [f"media {value}" for value in digests if value in media]
            for url in _urls(json.loads(metadata)):
                found += [f"URL {url}"] if url in urls else []
                found += [f"domain {domain}" for domain in _domains(url) if domain in domains]
            reasons.append(f"opted out: {found[0]}" if found else KEEP)
        return Judgement(reasons)


def _urls(value: Any) -> Iterator[str]:
    """Every URL in a JSON value."""
    if isinstance(value, str):
        if value.startswith(("http://", "https://")):
            yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _urls(inner)


def _domains(url: str) -> list[str]:
    """The URL's host and the domains above it: ``a.b.org``, ``b.org``, ``org``."""
    try:
        labels = (urlsplit(url).hostname or "").rstrip(".").split(".")
    except ValueError:
        return []
    return [".".join(labels[at:]) for at in range(len(labels))]
