"""Personal data, opt-out lists and languages."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from rebus.data.curation import curate
from rebus.data.curators.pii_scrub import luhn, scrub
from rebus.data.dataset import open_version, write_version
from rebus.data.rows import to_batch
from rebus.data.sample import Sample, Segment
from rebus.errors import InvalidArgumentError
from rebus.store import Store

ALL = ("email", "ip", "iban", "card", "phone")


def row(identifier: str, text: str, *media: bytes, **fields: Any) -> Sample:
    images = [Segment(type="image", media=at) for at in range(len(media))]
    return Sample(id=identifier, segments=[*images, Segment(text=text)], media=list(media), **fields)


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Write to ann.lee+x@mail.example.org, please.", "Write to [email], please."),
        ("ping 192.168.0.1. Or 2001:db8::1", "ping [ip]. Or [ip]"),
        ("GB82 WEST 1234 5698 7654 32 or DE89370400440532013000", "[iban] or [iban]"),
        ("card 4111 1111 1111 1111, 5500-0000-0000-0004", "card [card], [card]"),
        ("call +49 30 1234567 or (030) 123-4567 or 0171/1234567", "call [phone] or [phone] or [phone]"),
    ],
)
def test_personal_data_is_replaced(text: str, scrubbed: str) -> None:
    assert scrub(text, ALL)[0] == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "at 10:30:59 on 2024-01-31, version 1.2.3",
        "999.1.1.1 is no address, 4111 1111 1111 1112 no card",
        "GB83 WEST 1234 5698 7654 32 fails its check",
        "it costs 1,000,000 or 12 345 678; pi is 3.14159265358979",
        "@home, a@b, C++ std::vector",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert scrub(text, ALL) == (text, set())


def test_luhn_finds_every_wrong_digit() -> None:
    number = "4111111111111111"
    changed = {f"{number[:at]}{digit}{number[at + 1 :]}" for at in range(16) for digit in "0123456789"} - {number}
    assert luhn(number)
    assert not any(map(luhn, changed))


def test_scrubbing_rewrites_texts_and_nothing_else(store: Store) -> None:
    media = [np.random.default_rng(at).bytes(60_000) for at in range(5)]
    rows = [row(f"s{at}", f"mail a{at}@b.org" if at % 2 else "nothing", media[at]) for at in range(5)]
    version = write_version(store, "datasets/x", rows)
    before = sum(info.size for info in store.list("datasets/x"))

    chain = [{"name": "pii-scrub"}, {"name": "exact-dedup", "by": "text"}, {"name": "text-length", "min_chars": 3}]
    curated = curate(store, version.name, chain)

    reader = open_version(store, curated.version.name)
    expected = [row("s0", "nothing", media[0]), row("s1", "mail [email]", media[1])]
    assert list(reader.scan()) == expected
    assert {drop.sample_id: drop.reason for drop in curated.dropped} == {
        "s2": "repeats s0", "s3": "repeats s1", "s4": "repeats s0"
    }  # fmt: skip
    derived = ["num_chars", "text_sha256"]
    told = to_batch(expected).select(derived).to_pylist()
    assert reader.table(derived).to_pylist() == told
    assert reader.table(["pii"]).to_pydict() == {"pii": [None, ["email"]]}
    assert sum(info.size for info in store.list("datasets/x")) - before < 30_000
    assert list(open_version(store, version.name).scan()) == rows
    assert reader.verify() == []


def test_personal_data_may_drop_the_sample(store: Store) -> None:
    version = write_version(store, "datasets/x", [row("a", "from a@b.org at 10.0.0.1"), row("b", "nothing")])

    dropped = curate(store, version.name, [{"name": "pii-scrub", "drop": True, "kinds": ["ip", "email"]}]).dropped

    assert [(drop.sample_id, drop.reason) for drop in dropped] == [("a", "holds ip, email")]


def test_opt_outs_are_matched_by_id_family_media_url_and_domain(store: Store) -> None:
    page = {"page": {"links": ["https://sub.Example.org/x", "no url"]}}
    rows = [
        row("a", "t"),
        row("b", "t", family="f"),
        row("c", "t", b"picture"),
        row("d", "t", metadata={"url": "https://a.com/1"}),
        row("e", "t", metadata={"url": "https://a.com/2"}),
        row("g", "t", metadata=page),
        row("h", "t", metadata={"url": "http://notexample.org/"}),
        row("i", "t", metadata={"url": "http://[bad"}),
    ]
    version = write_version(store, "datasets/x", rows)
    digest = hashlib.sha256(b"picture").hexdigest()
    store.put("lists/out.json", b'{"domains": ["example.org"], "ids": ["f"]}')

    settings = {"urls": ["https://a.com/1"], "ids": ["a"], "sha256": [digest.upper()], "object": "lists/out.json"}
    dropped = curate(store, version.name, [{"name": "opt-out", **settings}]).dropped

    assert {drop.sample_id: drop.reason for drop in dropped} == {
        "a": "opted out: id a",
        "b": "opted out: id f",
        "c": f"opted out: media {digest}",
        "d": "opted out: URL https://a.com/1",
        "g": "opted out: domain example.org",
    }


def test_an_opt_out_list_with_an_unknown_key_is_refused(store: Store) -> None:
    version = write_version(store, "datasets/x", [row("a", "t")])
    store.put("lists/out.json", b'{"domain": ["example.org"]}')
    with pytest.raises(InvalidArgumentError, match="domain: unknown key; did you mean 'domains'"):
        curate(store, version.name, [{"name": "opt-out", "object": "lists/out.json"}])


def test_languages_are_told_and_may_be_chosen(store: Store) -> None:
    texts = {
        "en": "The children are playing in the garden behind the house.",
        "de": "Die Kinder spielen im Garten hinter dem alten Haus und lachen.",
        "fr": "Les enfants jouent dans le jardin derrière la maison.",
        "ja": "子供たちは家の裏の庭で遊んでいます。とても楽しそうです。",
        "ru": "Дети играют в саду за домом, и им очень весело.",
    }
    version = write_version(store, "datasets/x", [row(name, text) for name, text in texts.items()] + [row("x", "ok")])

    curated = curate(store, version.name, [{"name": "language-id", "keep": ["en", "ja"]}])

    table = open_version(store, curated.version.name).table(["id", "language"])
    assert table.to_pydict() == {"id": ["en", "ja", "x"], "language": ["en", "ja", None]}
    assert curated.dropped[0].reason == "is in language 'de', not one of en, ja"
