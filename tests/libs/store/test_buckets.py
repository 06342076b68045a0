"""Buckets, policies and presigned URLs against a live SeaweedFS."""

from __future__ import annotations

import urllib.error
import urllib.request
from datetime import timedelta

import pytest

from rebus.errors import InvalidArgumentError
from rebus.store import Store, buckets

pytestmark = pytest.mark.slow


def test_ensure_bucket_makes_it_once(s3_store: Store) -> None:
    url = "s3://another-bucket/prefix"
    buckets.ensure_bucket(url)
    buckets.ensure_bucket(url)
    store = Store.open(url)
    store.put("x", b"1")
    assert store.get("x") == b"1"


def test_policy_opens_a_prefix_to_everybody(s3_store: Store) -> None:
    url = "s3://open-bucket/public"
    buckets.ensure_bucket(url)
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject"],
        "Resource": ["arn:aws:s3:::open-bucket/public/*"],
    }
    store = Store.open(url)
    store.put("x", b"1")
    plain = buckets.presigned_url(url, "x").partition("?")[0]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(plain)
    buckets.set_policy(url, {"Version": "2012-10-17", "Statement": [statement]})
    assert urllib.request.urlopen(plain).read() == b"1"


@pytest.mark.parametrize("expires", [timedelta(0), timedelta(days=8)])
def test_expiry_is_bounded(s3_store: Store, expires: timedelta) -> None:
    with pytest.raises(InvalidArgumentError, match="expires"):
        buckets.presigned_url(s3_store.url, "a", expires=expires)
