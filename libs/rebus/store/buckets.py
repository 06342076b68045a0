"""Buckets, policies and presigned URLs of an S3 store, through the ``minio`` client.

obstore does the data; it has no calls for buckets and policies, and the ``minio`` client has no conditional put.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, Rule

from rebus.errors import PermissionDeniedError, UnavailableError, invalid
from rebus.store.paths import checked

MAX_EXPIRY = timedelta(days=7)
UNFINISHED_UPLOAD_DAYS = 7


def client() -> Minio:
    """A client for the endpoint and credentials of the ``AWS_*`` variables."""
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "https://s3.amazonaws.com"))
    return Minio(
        endpoint.netloc,
        access_key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        session_token=os.environ.get("AWS_SESSION_TOKEN"),
        region=os.environ.get("AWS_REGION"),
        secure=endpoint.scheme == "https",
    )


def ensure_bucket(url: str) -> None:
    """Makes the bucket of ``s3://bucket/prefix`` if it does not exist.

    A bucket made here forgets the parts of uploads that were begun and never ended.
    """
    bucket, _ = _parts(url)
    try:
        if not client().bucket_exists(bucket):
            client().make_bucket(bucket)
            client().set_bucket_lifecycle(bucket, _lifecycle())
    except S3Error as error:
        if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise PermissionDeniedError(f"bucket {bucket}: {error.code}: {error.message}") from None
    except Exception as error:
        raise UnavailableError(f"bucket {bucket}: the store did not answer: {error}") from None


def _lifecycle() -> LifecycleConfig:
    abort = AbortIncompleteMultipartUpload(days_after_initiation=UNFINISHED_UPLOAD_DAYS)
    rule = Rule(
        status=ENABLED,
        rule_id="abort-unfinished-uploads",
        rule_filter=Filter(prefix=""),
        abort_incomplete_multipart_upload=abort,
    )
    return LifecycleConfig([rule])


def set_policy(url: str, policy: dict[str, Any]) -> None:
    """Sets the bucket's policy document."""
    client().set_bucket_policy(_parts(url)[0], json.dumps(policy))


def presigned_url(
    url: str, path: str, *, method: Literal["GET", "PUT"] = "GET", expires: timedelta = timedelta(hours=1)
) -> str:
    """A URL that reads (GET) or writes (PUT) one object of an S3 store without credentials until it expires.

    ``InvalidArgumentError`` for a store that is not in a bucket, and for an expiry beyond S3's seven days.
    """
    if urlsplit(url).scheme != "s3":
        raise invalid("store", f"{url!r}: presigned URLs need an s3:// store")
    bucket, prefix = _parts(url)
    if not timedelta(seconds=1) <= expires <= MAX_EXPIRY:
        raise invalid("expires", f"expected at least 1 second and at most {MAX_EXPIRY}, found {expires}")
    name = f"{prefix}/{checked(path)}".lstrip("/")
    return client().get_presigned_url(method, bucket, name, expires=expires)


def _parts(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise invalid("store", f"{url!r}: expected s3://bucket/prefix")
    return parts.netloc, parts.path.strip("/")
