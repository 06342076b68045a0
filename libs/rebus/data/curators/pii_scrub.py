"""Personal data in texts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from rebus.data.curators.base import KEEP, Curator, Judgement
from rebus.data.rows import text_sha256
from rebus.data.sample import Sample, Segment
from rebus.registry import register

Kind = Literal["email", "ip", "iban", "card", "phone"]
PII = "pii"

# Bounded repetitions, so that no text makes a search take more than linear time.
_PATTERNS: dict[Kind, re.Pattern[str]] = {
    "email": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}\b"),
    "ip": re.compile(
        r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4})(?![\w:]|\.\d)"
    ),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "card": re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])"),
    "phone": re.compile(r"(?<![\w.+-])(?:\+|\(0|0)\d{0,4}\)?(?:[ ./()-]{0,2}\d){6,13}(?![\w-])"),
}


@dataclass(frozen=True, kw_only=True)
class PiiScrubConfig:
    """What is looked for, in this order, and whether samples that hold any are dropped instead of scrubbed."""

    kinds: tuple[Kind, ...] = ("email", "ip", "iban", "card", "phone")
    drop: bool = False


@register("curator", "pii-scrub", config=PiiScrubConfig)
class PiiScrub(Curator):
    """Replaces e-mail and IP addresses, IBANs, card and phone numbers in texts by ``[email]``, ``[ip]``, ...

    Only what passes the number's own check counts: Luhn for cards, modulo 97 for IBANs. Adds ``pii``: the kinds that
    were found, null where there were none.
    """

    reads = ("segments",)
    adds: Mapping[str, pa.DataType] = {PII: pa.list_(pa.string())}
    rewrites = ("segments", "num_chars", "text_sha256")

    def __init__(self, config: PiiScrubConfig) -> None:
        self._config = config

    def judge(self, observed: pa.RecordBatch) -> Judgement:
        """Scrubs each row's texts; what holds nothing stays as it is."""
        rows = observed.column("segments").to_pylist()
        found = [self._scrub(segments) for segments in rows]
        reasons = [f"holds {', '.join(kinds)}" if self._config.drop and kinds else KEEP for kinds in found]
        changed = [row if kinds and not self._config.drop else None for row, kinds in zip(rows, found, strict=True)]
        values = {
            PII: [kinds or None for kinds in found],
            "segments": changed,
            "num_chars": [None if row is None else sum(map(len, _texts(row))) for row in changed],
            "text_sha256": [None if row is None else _digest(row) for row in changed],
        }
        return Judgement(reasons, values)

    def _scrub(self, segments: Sequence[dict[str, Any]]) -> list[str]:
        """Scrubs the texts in place; the kinds found, in the order of the settings."""
        found = set()
        for segment in segments:
            if segment["type"] == "text":
                segment["text"], kinds = scrub(segment["text"], self._config.kinds)
                found |= kinds
        return [kind for kind in self._config.kinds if kind in found]


def scrub(text: str, kinds: Sequence[Kind]) -> tuple[str, set[str]]:
    """The text with what was found replaced, and the kinds of it."""
    found: set[str] = set()
    for kind in kinds:

        def replace(match: re.Match[str], kind: Kind = kind) -> str:
            if not _CHECKS.get(kind, lambda _: True)(match[0]):
                return match[0]
            found.add(kind)
            return f"[{kind}]"

        text = _PATTERNS[kind].sub(replace, text)
    return text, found


def luhn(number: str) -> bool:
    """Whether the digits pass the check of ISO/IEC 7812-1."""
    digits = [int(c) for c in reversed(number) if c.isdecimal()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def iban(number: str) -> bool:
    """Whether it passes the check of ISO 13616: its letters as numbers, the first four characters last, modulo 97."""
    plain = number.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return address != "::"


_CHECKS: dict[str, Callable[[str], bool]] = {"card": luhn, "iban": iban, "ip": _ip}


def _texts(segments: Sequence[dict[str, Any]]) -> list[str]:
    return [segment["text"] for segment in segments if segment["type"] == "text"]


def _digest(segments: Sequence[dict[str, Any]]) -> str:
    fields = ("type", "role", "branch", "text")
    return text_sha256(Sample(id="", segments=[Segment(**{name: row[name] for name in fields}) for row in segments]))
